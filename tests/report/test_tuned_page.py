"""The page about a tuning: everything in it, and nothing acted upon."""

from __future__ import annotations

import base64

from nc_finetune.report.tuned_page import ClassRow, Compared, Confused, Doubtful, TunedPage, render_tuned_page

EVIL = "<script>alert(1)</script>"


def test_page_without_measurements_stands_alone() -> None:
    page = render_tuned_page(TunedPage("Tuned", ["Chosen: nothing."], []))
    assert "Chosen: nothing." in page
    assert "NC1 layer by layer" not in page
    assert "//" not in page


def test_page_holds_tables_pictures_and_images_and_escapes_names() -> None:
    page = render_tuned_page(
        TunedPage(
            f"Tuned on {EVIL}",
            ["Chosen: readout."],
            [Compared("readout", 64, 0.9, 0.8, 0.95, 1.0, chosen=True), Compared("full FT", 64, 0.85, 0.7, 0.9, 9.0)],
            left_out=["LoRA"],
            nc1={"pre-trained": {"a": 3.0, "b": 1.0}, "tuned": {"a": 3.0, "b": float("nan")}},
            classes=[ClassRow(EVIL, 5, 0.8, 1.5, "dog", [b"\x89PNGclass"])],
            pairs=[Confused("cat", EVIL, 2, [b"\x89PNGpair", b""])],
            doubtful=[Doubtful("cat/1.png", EVIL, "dog", 0.97, b"\x89PNG...")],
            commands=["nc-finetune predict"],
            facts={"seed": EVIL},
        )
    )
    assert EVIL not in page
    assert page.count("&lt;script&gt;") == 7
    for image in (b"\x89PNGclass", b"\x89PNGpair"):
        assert base64.b64encode(image).decode() in page
    assert page.count('<th scope="col">some of them</th>') == 2
    assert '<td class="best">90.0</td>' in page
    assert "Not tried for want of time: LoRA." in page
    assert base64.b64encode(b"\x89PNG...").decode() in page
    assert "data:image/svg+xml;base64," in page
    assert "(97 %)" in page
