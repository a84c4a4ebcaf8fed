"""One run of each short form for all tests that look at it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.theory.core.experiment import Findings
from benchmarks.theory.core.runner import measure, run_all
from benchmarks.theory.experiments.catalogue import find

Written = Callable[[str], Path]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Run an experiment's short form, once, and return the folder with what it wrote."""

    @cache
    def run(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        run_all([name], folder, Console(quiet=True), short=True)
        return folder

    return run


def measure_short(name: str, **changes: Any) -> Findings:
    """Run an experiment's short form with some settings changed."""
    experiment = find(name)
    settings = experiment.load_settings(short=True)
    for key, value in changes.items():
        assert hasattr(settings, key), f"{name} has no setting {key}"
        object.__setattr__(settings, key, value)  # as frozen as they are: nobody else holds them
    return measure(experiment, settings)[0]
