"""Cells of a grid as tasks of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from nc_finetune.results.result import Result
from nc_finetune.run._cell.outcome import failed_result
from nc_finetune.run._cell.run import run_cell
from nc_finetune.run.cell import Cell
from nc_finetune.run.ray_tasks import RayTasks


class RayExecutor(RayTasks):
    """Run cells as Ray tasks; results come back to the process that holds the folder, which alone writes them.

    One whose worker is lost too often is recorded as failed.

    Args:
        address: As of :class:`RayTasks`.
        run: What a task calls; :func:`~nc_finetune.run.run_cell`.
        options: Further arguments of :class:`RayTasks`.
    """

    calls_of_a_worker = 1  # a cell gives memory back only with its process

    def __init__(self, address: str | None = None, *, run: Callable[[Cell], Result] = run_cell, **options: Any) -> None:
        super().__init__(address, **options)
        self.run = run

    def __call__(self, cells: Sequence[Cell], advance: Callable[[int], None]) -> Iterator[tuple[Cell, Result]]:
        """Run cells on the cluster; yield each with its result as soon as it is there."""
        with self.cluster():
            for place, found in self.each(_call, [(self.run, cell) for cell in cells]):
                cell = cells[place]
                if isinstance(found, Exception):  # of Ray: run_cell itself raises nothing
                    yield cell, failed_result(cell, found)
                else:
                    yield cell, replace(found, provenance={**found.provenance, "executor": "ray"})


def _call(run: Callable[[Cell], Result], cell: Cell) -> Result:
    return run(cell)
