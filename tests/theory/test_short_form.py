from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.theory.core.runner import run_all
from benchmarks.theory.experiments.catalogue import EXPERIMENTS, find


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_claim_holds_in_the_short_form(name: str, tmp_path: Path) -> None:
    assert run_all([find(name)], tmp_path, Console(quiet=True), short=True)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.json", f"{name}.svg", "theory.html"}


def test_unknown_experiment_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown experiment 'parsimoni'; did you mean 'parsimony'"):
        find("parsimoni")
