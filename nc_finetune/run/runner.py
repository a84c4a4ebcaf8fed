"""Run the cells of a grid, one result file each."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.text import Text

from nc_finetune._common.terminal import open_console, shown_steps
from nc_finetune.results.result import Result, read_result, write_result
from nc_finetune.run._cell.run import load_data, run_cell
from nc_finetune.run.cell import Cell
from nc_finetune.run.folder import FolderState, lock_folder, look_into, remove_leftovers, set_aside
from nc_finetune.run.grid import Grid


class Executor(Protocol):
    """How cells are run: one after the other, or on many machines."""

    def __call__(self, cells: Sequence[Cell], advance: Callable[[int], None]) -> Iterator[tuple[Cell, Result]]:
        """Run cells; yield each with its result as soon as it is there. ``advance`` counts fits."""


def run_serially(
    cells: Sequence[Cell], advance: Callable[[int], None], unfinished: Path | None = None
) -> Iterator[tuple[Cell, Result]]:
    """Run one cell after the other in this process.

    Args:
        cells: What to run.
        advance: Called after each fit with 1.
        unfinished: Keeps folds that were judged, in a folder for each cell; ``None`` keeps none.

    Yields:
        Each cell with its result.
    """
    for cell in cells:
        kept = {"progress": unfinished / cell.run_id} if unfinished is not None and cell.choice.by_folds else {}
        yield cell, run_cell(cell, partial(advance, 1), **kept)


def run_grid(
    grid: Grid,
    out: Path,
    console: Console | None = None,
    *,
    retry_failed: bool = False,
    executor: Executor = run_serially,
) -> list[Result]:
    """Run what is missing of a grid, and show how long it takes: by a bar, or where that cannot be by a line a run.

    The folder is locked meanwhile. A result is there whole or not at all, so whenever the process is killed, the same
    call goes on where it was; what was running then runs again, without the folds that it had judged (in
    ``<out>/unfinished``, until there is a result). Files that are no results of this version are renamed
    to ``.invalid``, runs on other images, weights or settings than those that are there now to ``.outdated``; both are
    named, and run again.

    Args:
        grid: What to run.
        out: Results go to ``<out>/results/``, one file a run, as soon as it is finished.
        console: Where the progress goes; ``None`` is standard error.
        retry_failed: Run cells that failed or diverged again.
        executor: How cells are run.

    Returns:
        The results of all cells of the grid, old and new, in their order.

    Raises:
        ValueError: If another benchmark is running in the folder.
    """
    cells, folder = grid.cells(), out / "results"
    load_data.cache_clear()  # the images may be others than those of an earlier grid
    console = console or open_console(stderr=True)
    with lock_folder(out):
        remove_leftovers(folder)
        state = look_into(cells, folder, retry_failed)
        _put_in_order(state, folder, console)
        unfinished = out / "unfinished"
        _remove_others(unfinished, {cell.run_id for cell in state.missing})
        _run_missing(state.missing, folder, unfinished, executor, console)
        return [read_result(folder / f"{cell.run_id}.json") for cell in cells]


def _put_in_order(state: FolderState, folder: Path, console: Console) -> None:
    """Set aside what is no result of what would be run now, and complete what is."""
    for path in set_aside(state.unreadable):
        console.print(Text(f"not a result of this version, set aside and run again: {path}"), soft_wrap=True)
    for path, difference in state.outdated.items():
        (kept,) = set_aside([path], ".outdated")
        console.print(Text(f"{path.stem} {difference}: kept as {kept}, and run again"), soft_wrap=True)
    for problem in state.problems:
        console.print(Text(problem), soft_wrap=True)
    for result in state.older:
        write_result(result, folder)


def _remove_others(unfinished: Path, still: Set[str]) -> None:
    """Remove what was kept of cells that are not to run."""
    for path in unfinished.iterdir() if unfinished.is_dir() else ():
        if path.name not in still:
            shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        unfinished.rmdir()  # where nothing is left


def _run_missing(missing: Sequence[Cell], folder: Path, unfinished: Path, executor: Executor, console: Console) -> None:
    fits = sum(cell.fits for cell in missing)
    # Other machines may not have the folder.
    run_cells = partial(run_serially, unfinished=unfinished) if executor is run_serially else executor
    with shown_steps("fits", fits, console) as steps:
        done, told = 0, set[str]()
        for number, (cell, result) in enumerate(run_cells(missing, steps.advance), 1):
            write_result(result, folder)
            if result.status != "failed":  # which may be tried again
                _remove_others(unfinished, {path.name for path in unfinished.glob("*")} - {cell.run_id})
            for note in [note for note in result.notes if note not in told]:
                console.print(Text(f"{result.dataset}: {note}"), soft_wrap=True)
                told.add(note)
            done += cell.fits  # also the fits that a failed cell left out
            named = f"{cell.dataset_name}, {cell.method.method_class().label}, seed {cell.seed}: {result.status}"
            steps.finish(done, f"run {number} of {len(missing)}, {named}")
