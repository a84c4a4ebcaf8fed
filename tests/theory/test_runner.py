from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console
from theory.conftest import Written

from benchmarks.theory.__main__ import main
from benchmarks.theory.core import largest, smallest
from benchmarks.theory.core.page import _environment
from benchmarks.theory.core.runner import run_all
from benchmarks.theory.experiments.catalogue import find


def test_files_of_an_experiment(written: Written) -> None:
    folder = written("loss_landscape")
    names = {path.name for path in folder.iterdir()}
    assert names == {"loss_landscape.json", "loss_landscape.png", "theory.html", "theory.md"}


def test_markdown_table_has_a_row_a_claim_and_marks_corrected_statements(written: Written) -> None:
    table = (written("loss_landscape") / "theory.md").read_text()
    rows = [line for line in table.splitlines() if line.endswith("| yes |")]
    assert len(rows) == 7
    assert (
        "curvature in the angle over that in the length at the minimum is M²/α `*` | 0.2 | = 0.2 | 1e-06 | yes |"
        in table
    )
    assert "## What does not hold as stated" in table


def test_bars_in_names_do_not_end_cells() -> None:
    template = _environment().from_string("{{ name | cell }}")
    assert template.render(name="E|yᵀq|⁴") == r"E\|yᵀq\|⁴"


def test_results_do_not_depend_on_what_runs_beside(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Threads stand in for processes, each of which would import torch first.
    monkeypatch.setattr("benchmarks.theory.core.runner.ProcessPoolExecutor", lambda jobs, **_: ThreadPoolExecutor(jobs))
    assert run_all(["loss_landscape"], tmp_path, Console(quiet=True), short=True, jobs=2)
    same = [(folder / "loss_landscape.png").read_bytes() for folder in (tmp_path, written("loss_landscape"))]
    assert same[0] == same[1]


def test_exit_status_tells_whether_claims_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["loss_landscape", "--short", "--out", str(tmp_path)]
    assert main(words) == 0
    monkeypatch.setattr("benchmarks.theory.experiments.loss_landscape._ENTROPY_REACH", 0.1)
    assert main(words) == 1


def test_unknown_experiment_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown experiment 'parsimoni'; did you mean 'parsimony'"):
        find("parsimoni")


def test_extremes_do_not_pass_over_nan() -> None:
    values = [1.0, float("nan"), 2.0]
    assert str(largest(values)) == str(smallest(values)) == "nan"
