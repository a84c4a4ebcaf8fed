"""The folder of a benchmark: one lock, and results that are there whole or not at all."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from nc_finetune.results.result import SCHEMA_VERSION, Result, read_result
from nc_finetune.run.cell import Cell
from nc_finetune.run.fingerprints import Comparison

# Processes that decode images outlive a killed benchmark, and hold its lock, for up to five seconds.
_PATIENCE = 10.0


@dataclass
class FolderState:
    """How far a grid has come.

    Attributes:
        done: Results that stand, by the name of the run.
        missing: Cells that are to run, in their order.
        unreadable: Files that are no results of this version; their cells are among the missing.
        outdated: Runs of a missing cell on other images, with other weights or settings, each with what differs.
        older: Runs that stand, of records that said less; what they are of is filled in.
        problems: What could not be compared, a sentence each.
    """

    done: dict[str, Result] = field(default_factory=dict)
    missing: list[Cell] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    outdated: dict[Path, str] = field(default_factory=dict)
    older: list[Result] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@contextmanager
def lock_folder(out: Path, patience: float = _PATIENCE) -> Iterator[None]:
    """Keep a second benchmark out of a folder; the lock ends with the process, however that ends.

    Args:
        out: The folder; made if it is not there.
        patience: Seconds to wait for the other one.

    Raises:
        ValueError: If another process is at work there.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise ValueError(f"another benchmark is running in {out}; wait for it, or choose another --out") from error
    try:
        yield
    finally:
        lock.release()


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process was writing; only with the lock held."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def look_into(cells: Sequence[Cell], folder: Path, retry_failed: bool = False) -> FolderState:
    """Find out which cells are still to run: those without a run, or with one that is not of what is there now.

    Images and weights of finished runs are compared by their hashes with those that the grid names now.

    Args:
        cells: The cells of a grid.
        folder: The folder of the results.
        retry_failed: Run cells that failed or diverged again.

    Returns:
        What is done and what is missing; files that are no results count as missing and stay where they are.
    """
    state, comparison = FolderState(), Comparison()
    for cell in cells:
        path = folder / f"{cell.run_id}.json"
        result = _read_or_none(path, state) if path.exists() else None
        if result is None or (retry_failed and result.status != "ok"):
            state.missing.append(cell)
        elif (difference := comparison.what_differs(result, cell)) is not None:
            state.outdated[path] = difference
            state.missing.append(cell)
        else:
            state.done[cell.run_id] = _with_config(result, cell, state)
    state.problems += comparison.problems
    return state


def _with_config(result: Result, cell: Cell, state: FolderState) -> Result:
    """Fill in what an older record does not say: its name and its images are those of the cell."""
    if result.config:
        return result
    filled = replace(result, config=cell.config, schema_version=SCHEMA_VERSION)
    state.older.append(filled)
    return filled


def _read_or_none(path: Path, state: FolderState) -> Result | None:
    try:
        return read_result(path)
    except ValueError:
        state.unreadable.append(path)
        return None


def set_aside(paths: Iterable[Path], ending: str = ".invalid") -> list[Path]:
    """Rename files of results, so that their cells run again and nothing is lost.

    Args:
        paths: The files.
        ending: In place of ``.json``; numbered where such a file is there already.

    Returns:
        Their new paths.
    """
    return [path.replace(_free_path(path, ending)) for path in paths]


def _free_path(path: Path, ending: str) -> Path:
    numbered = (path.with_suffix(f"{ending}{number or ''}") for number in itertools.count())
    return next(free for free in numbered if not free.exists())
