import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/parameters.py"
# Where the slides' second decimal is not the rounded one; both are within one unit of it.
BESIDE = {("ViT-B/32", "Aircraft"): "8.19", ("CLIP ViT-B/32", "Aircraft"): "8.15"}


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("parameters", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shares(script: Any) -> dict[tuple[str, str, str], float]:
    return script.tuned_shares()


def test_the_33_cells_of_the_slides_come_out_to_the_printed_digit(script: Any, shares: Any) -> None:
    cells = [(b, d, m) for b, d, m in shares if script.slides_cell(b, d, m) is not None]
    assert len(cells) == 33
    expected = {cell: script.slides_cell(*cell) for cell in cells}
    for backbone, dataset, method in cells:
        if (backbone, dataset) in BESIDE and method in ("layer FT", "SCL-FT"):
            theirs = expected[backbone, dataset, method]
            expected[backbone, dataset, method] = f"{BESIDE[backbone, dataset]} ({theirs})"
            assert shares[backbone, dataset, method] == pytest.approx(float(theirs), abs=0.012)
    assert {cell: script.printed(shares, *cell) for cell in cells} == expected


def test_layer_ft_and_scl_ft_tune_the_same(shares: Any) -> None:
    pairs = [(value, shares[b, d, "SCL-FT"]) for (b, d, m), value in shares.items() if m == "layer FT"]
    assert len(pairs) == 11
    assert all(layer == skip for layer, skip in pairs)


def test_clip_on_aircraft_is_the_slides_cell_with_the_head_out_of_the_total() -> None:
    block, backbone, head = 7_087_872, 87_849_216, 100 * 769
    assert f"{100 * (block + head) / backbone:.2f}" == "8.16"


def test_fixed_heads_save_what_the_slides_say(script: Any) -> None:
    saved = script.saved_shares()
    assert {label: f"{value:.2g}" for label, value in saved.items()} == script.SLIDES_SAVED
    # By hand: a learned head of 1000 (2048 + 1) parameters behind 23,508,032.
    assert saved["ResNet50, K = 1000"] == pytest.approx(100 * 2_049_000 / 25_557_032)
