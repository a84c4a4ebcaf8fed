"""The results of several benchmarks as one."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from nc_finetune.results.identity import differences, facts_of, identity_of
from nc_finetune.results.result import Result, read_result

# What the same run comes to again; the rest follows from it, or is time.
_NUMBERS = ("accuracy", "average_precision", "nc1", "calibration_error", "tempered_calibration_error")


def merge_results(folders: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """Read the results of several benchmarks as one.

    Of a run that several folders hold, one that finished counts before one that did not, then the folder that is named
    first. The same holds of runs that differ in their names alone, as those of grids that were written differently.
    Runs of one name on other images, with other weights or settings all stay. What is left out, what cannot be told,
    and files that are no results of this version, are named.

    Args:
        folders: What ``--out`` of the benchmarks was.

    Returns:
        The runs, each with a name of its own, and a sentence for each thing to know.

    Raises:
        ValueError: If there is no folder, or one of them holds no result.

    Example:
        >>> merge_results([Path("nowhere")])
        Traceback (most recent call last):
            ...
        ValueError: there are no results in nowhere/results; run the benchmark first, or name its --out
    """
    if not folders:
        raise ValueError("name at least one folder of results")
    merged = _Merged()
    for folder in folders:
        runs, unreadable = _read_all(folder / "results")
        if not runs:
            hint = "; ".join(unreadable) or "run the benchmark first, or name its --out"
            raise ValueError(f"there are no results in {folder / 'results'}; {hint}")
        merged.problems += unreadable
        merged.add(runs, folder)
    return list(merged.runs.values()), merged.problems


class _Merged:
    """Runs of several folders, none twice, and what there is to say of them."""

    def __init__(self) -> None:
        self.runs: dict[str, Result] = {}
        self.problems: list[str] = []
        self._finished: dict[str, str] = {}  # name by identity

    def add(self, runs: Sequence[Result], folder: Path) -> None:
        """Add the runs of one folder."""
        repeated, differing = [], []
        for run in runs:
            twin = self._finished.get(identity_of(run))
            if twin is None or run.status != "ok":
                self._add(run, folder)
                continue
            if twin != run.run_id:
                repeated.append(f"{run.run_id} ({twin})")
            if found := _measured_otherwise(self.runs[twin], run):
                differing.append(f"{run.run_id} ({', '.join(found)})")
        if repeated:
            self.problems.append(
                f"{len(repeated)} of {len(runs)} runs in {folder} differ in nothing that is recorded from runs that"
                f" were read before: {', '.join(repeated)}"
            )
        if differing:
            self.problems.append(
                f"{len(differing)} of {len(runs)} runs in {folder} came to other numbers than the same runs that were"
                f" read before, which are shown: {'; '.join(differing)}"
            )

    def _add(self, run: Result, folder: Path) -> None:
        """Add a run that is not there yet; one of the same name makes room if it did not finish, or else both stay."""
        other = self.runs.get(run.run_id)
        if other is not None:
            differing = differences(facts_of(other), facts_of(run))
            if not differing and "ok" not in (run.status, other.status):
                return
            if not differing and not (run.status == other.status == "ok"):
                self._keep(other if other.status == "ok" else run)
                return
            reason = f"has another {', '.join(differing)}" if differing else "may be of other images or settings"
            self.problems.append(
                f"{run.run_id} in {folder} {reason} than the run of that name that was read before"
                + (", and both are shown" if differing else ", one of them does not say: both are shown")
            )
            run = dataclasses.replace(run, run_id=self._free_name(f"{run.run_id} ({folder})"))
        self._keep(run)

    def _keep(self, run: Result) -> None:
        self.runs[run.run_id] = run
        if run.status == "ok":
            self._finished[identity_of(run)] = run.run_id

    def _free_name(self, name: str) -> str:
        numbered = (name if number == 1 else f"{name} {number}" for number in itertools.count(1))
        return next(free for free in numbered if free not in self.runs)


def _measured_otherwise(first: Result, second: Result) -> list[str]:
    """Say where two runs of the same thing came to other numbers."""
    pairs = {name: (getattr(first, name), getattr(second, name)) for name in _NUMBERS}
    return [
        f"{name.replace('_', ' ')} {one:.4g} and {other:.4g}"
        for name, (one, other) in pairs.items()
        if one is not None and other is not None and not math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-6)
    ]


def _read_all(folder: Path) -> tuple[list[Result], list[str]]:
    runs: list[Result] = []
    problems: list[str] = []
    for path in sorted(folder.glob("*.json")):
        try:
            runs.append(read_result(path))
        except (ValueError, RecursionError) as error:
            problems.append(str(error) if isinstance(error, ValueError) else f"{path} is nested too deep")
        except OSError as error:
            problems.append(f"{path} cannot be read ({error.strerror}); mend or remove it")
    return runs, problems
