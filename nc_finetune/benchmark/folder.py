"""The folder of a benchmark: one lock, and results that are there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from nc_finetune.benchmark.grid import Cell
from nc_finetune.benchmark.results import Result, read_result

# Processes that decode images outlive a killed benchmark, and hold its lock, for up to five seconds.
_PATIENCE = 10.0


@dataclass
class FolderState:
    """How far a grid has come.

    Attributes:
        done: Results that stand, by the name of the run.
        missing: Cells that are to run, in their order.
        unreadable: Files that are no results of this version; their cells are among the missing.
    """

    done: dict[str, Result] = field(default_factory=dict)
    missing: list[Cell] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)


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
    """Find out which cells are still to run.

    Args:
        cells: The cells of a grid.
        folder: The folder of the results.
        retry_failed: Run cells that failed or diverged again.

    Returns:
        What is done and what is missing; files that are no results count as missing and stay where they are.
    """
    state = FolderState()
    for cell in cells:
        path = folder / f"{cell.run_id}.json"
        result = _read_or_none(path, state) if path.exists() else None
        if result is None or (retry_failed and result.status != "ok"):
            state.missing.append(cell)
        else:
            state.done[cell.run_id] = result
    return state


def _read_or_none(path: Path, state: FolderState) -> Result | None:
    try:
        return read_result(path)
    except ValueError:
        state.unreadable.append(path)
        return None


def set_aside(paths: Sequence[Path]) -> list[Path]:
    """Rename files that are no results, so that their cells run again and nothing is lost.

    Args:
        paths: The files.

    Returns:
        Their new paths, ending in ``.invalid``.
    """
    return [path.replace(path.with_suffix(".invalid")) for path in paths]
