"""Where grids and results were before version 0.2; what is asked for here comes from its new place, with a warning."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

_HOMES = {"Grid": "run", "read_grid": "run", "run_grid": "run", "Result": "results", "read_results": "results"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"nc_finetune.{_HOMES[name]}"
    warnings.warn(
        f"nc_finetune.benchmark.{name} is {home}.{name} since 0.2, and goes with 0.3",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(import_module(home), name)
