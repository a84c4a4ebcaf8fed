"""The bench of what tuning adds to a readout: what it keeps, and what it makes of it."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.readout import tuned
from benchmarks.readout.tuned import Cell, Setting, measure, path_of
from benchmarks.readout.tuned_tables import page, rows_of, write_csv
from nc_finetune.backbones import TimmBackbone

SETTING = Setting("made-up", "sklearn:digits", 32, 20, 2, 1, ("full FT", "full FT from the readout"))


def cell(right: dict[str, int], seed: int, number: int = 50) -> Cell:
    """Make logits of heads that are right of so many images."""
    labels = torch.arange(number) % 5
    logits: dict[str, dict[str, torch.Tensor]] = {"val": {}, "test": {}}
    generator = torch.Generator().manual_seed(seed)
    for split, found in logits.items():
        for head, count in right.items():
            called = torch.where(torch.arange(number) < count, labels, (labels + 1) % 5)
            noise = torch.rand(number, 5, generator=generator) / 4
            found[head] = torch.nn.functional.one_hot(called, 5) + noise
        assert split in logits
    told: dict[str, Any] = {"rate": 1e-3, "key_layer": None, "images": 100, "epochs": 1}
    return Cell(logits, {"val": labels, "test": labels.clone()}, told)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for sample in range(2):
        cells = {
            "readout": cell({"readout": 40, "readout of more": 42}, sample),
            "full FT": cell({"trained": 30, "feature": 35, "later_half": 45}, sample),
            "full FT from the readout": cell({"trained": 44, "feature": 41}, sample),
        }
        for name, found in cells.items():
            found.write(path_of(tmp_path, SETTING, sample, name))
    return tmp_path


def test_logits_are_kept(folder: Path) -> None:
    found, expected = Cell.read(path_of(folder, SETTING, 1, "full FT")), cell({"trained": 30, "feature": 35}, 1)
    assert torch.equal(found.logits["val"]["trained"], expected.logits["val"]["trained"])
    assert (found.told, set(found.labels)) == (expected.told, {"val", "test"})


def test_gains_are_against_the_better_one_alone(folder: Path, tmp_path: Path) -> None:
    rows = rows_of([SETTING, replace(SETTING, per_class=100)], folder)  # of which nothing was trained
    accuracies = {(row.method, row.head): row.accuracy for row in rows if row.sample == 0}
    assert accuracies["readout", "alone"] == 80
    assert accuracies["full FT", "its own head"] == 60
    assert accuracies["full FT", "solved on the later half"] == 90
    assert accuracies["full FT", 'SolveHead("later_half") takes'] == 90
    assert ("full FT", "solved on the frozen network") not in accuracies
    assert ("full FT", 'SolveHead("later_half", frozen=True) takes') in accuracies
    shown = page(rows, "versions")
    assert "| full FT | solved on the later half | +10.00 ± 0.00 |  | +10.00 ± 0.00 | +6.00 ± 0.00 |  |" in shown
    assert "| full FT from the readout | its own head | +8.00 ± 0.00 |  | +8.00 ± 0.00 |" in shown
    write_csv(rows, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(rows)
    assert read[0] == {
        **dict(zip(("data", "images_a_class", "images", "sample"), ("made-up", "20", "100", "0"), strict=True)),
        "network": "readout",
        "head": "alone",
        "taken": "",
        "block": "",
        "rate": "",
        "accuracy": "80.00",
    }


@pytest.mark.slow
def test_rates_at_no_edge_are_chosen_once_and_nothing_is_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned, "_network", lambda: TimmBackbone("test_efficientnet", None))
    said: list[str] = []
    for sample in range(2):
        measure(SETTING, sample, tmp_path, said.append)
    first, second = (Cell.read(path_of(tmp_path, SETTING, sample, "full FT")).told for sample in range(2))
    tried = {float(rate): value for rate, value in first["tried"].items()}
    best = max(tried, key=lambda rate: tried[rate])
    assert best == pytest.approx(first["rate"], rel=0.05)
    assert len(tried) == tuned.MOST_RATES or min(tried) < best < max(tried)
    assert second["rate"] == first["rate"]
    assert len(second["tried"]) == 1
    assert len(said) == 6
    measure(SETTING, 0, tmp_path, said.append)
    assert len(said) == 6
    assert {row.method for row in rows_of([SETTING], tmp_path)} == {"readout", *SETTING.tunings}
