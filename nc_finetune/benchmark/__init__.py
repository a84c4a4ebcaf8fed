"""Benchmarks: grids of runs, their results, and reports of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nc_finetune.benchmark.grid import Grid as Grid
    from nc_finetune.benchmark.grid import read_grid as read_grid
    from nc_finetune.benchmark.results import Result as Result
    from nc_finetune.benchmark.results import read_results as read_results
    from nc_finetune.benchmark.runner import run_grid as run_grid

# Imported when they are asked for: a report needs nothing of what trains.
_HOMES = {"Grid": "grid", "read_grid": "grid", "Result": "results", "read_results": "results", "run_grid": "runner"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
