"""The page about suspected labels: everything in it, and nothing acted upon."""

from __future__ import annotations

import base64

from nc_finetune.report.labels_page import LabelsPage, Suspected, render_labels_page

EVIL = "<script>alert(1)</script>"
IMAGE = b"\x89PNG..."


def test_page_without_suspects_stands_alone() -> None:
    page = render_labels_page(LabelsPage("Labels of photos", ["None of 5 images."], []))
    assert "None of 5 images." in page
    assert "Look at these labels" not in page
    assert "//" not in page


def test_what_is_hardly_probable_is_not_called_0_percent() -> None:
    page = render_labels_page(LabelsPage("", [], [Suspected("1.png", "train", "cat", 1e-5, "dog", 0.6)]))
    assert "under 1\u00a0%" in page
    assert "60\u00a0%" in page


def test_page_holds_images_of_both_classes_and_escapes_names() -> None:
    page = render_labels_page(
        LabelsPage(
            EVIL,
            [EVIL],
            [Suspected(EVIL, "train", EVIL, 0.02, "dog", 0.97, IMAGE), Suspected("2.png", "test", "dog", 0, EVIL, 1)],
            {EVIL: [IMAGE, b""], "dog": [b"JPEG"] * 3},
            [EVIL],
        )
    )
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    assert page.count(base64.b64encode(IMAGE).decode()) == 3  # itself, and as typical of its class, twice
    assert page.count(base64.b64encode(b"JPEG").decode()) == 6
    assert "2\u00a0%" in page
    assert "97\u00a0%" in page
    assert 'src=""' not in page
