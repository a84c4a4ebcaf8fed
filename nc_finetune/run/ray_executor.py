"""Cells of a grid as tasks of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from nc_finetune._common.stopping import ToldToEnd, handlers_kept, noted_signals
from nc_finetune.errors import missing_extra
from nc_finetune.results.result import Result
from nc_finetune.run._cell.outcome import failed_result
from nc_finetune.run._cell.run import run_cell
from nc_finetune.run.cell import Cell

_LOOK_EVERY = 0.5  # seconds between two looks at signals


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray", "ray", "--executor ray") from error
    return ray


class RayExecutor:
    """Run cells as Ray tasks: on a cluster of this machine, or on an existing one.

    Results come back to the process that holds the folder, which alone writes them. A task whose worker is lost runs
    again elsewhere; one that loses ``max_lost_workers`` more is recorded as failed. Data and weights must be
    reachable by the same names from every machine of the cluster.

    Args:
        address: Of an existing cluster, ``"auto"`` for one that runs on this machine; ``None`` starts one.
        cpus: CPUs of a cell, from which Ray sets the number of threads that it computes with.
        gpus: GPUs of a cell; a share lets several cells have one.
        max_lost_workers: How often the worker of a cell may be lost.
        run: What a task calls; :func:`~nc_finetune.run.run_cell`.

    Raises:
        ValueError: If a number is out of range.
        ImportError: If ray is not installed.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: float = 1,
        gpus: float = 0,
        max_lost_workers: int = 3,
        run: Callable[[Cell], Result] = run_cell,
    ) -> None:
        if cpus <= 0 or gpus < 0:
            raise ValueError(f"cpus must be above 0 and gpus at least 0, got {cpus} and {gpus}")
        self.address = address
        self.cpus = cpus
        self.gpus = gpus
        self.max_lost_workers = max_lost_workers
        self.run = run
        self._ray = _import_ray()

    def __call__(self, cells: Sequence[Cell], advance: Callable[[int], None]) -> Iterator[tuple[Cell, Result]]:
        """Run cells on the cluster; yield each with its result as soon as it is there."""
        started = not self._ray.is_initialized()
        if started:
            with handlers_kept():  # Ray's own would end this process with another status
                self._ray.init(address=self.address, log_to_driver=False, include_dashboard=False)
        try:
            yield from self._run_all(cells)
        finally:
            if started:
                self._ray.shutdown()

    def _run_all(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
        task = self._ray.remote(
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_retries=self.max_lost_workers,
            # A cell gives memory back only with its process.
            max_calls=1,
        )(_call)
        waiting = {task.remote(self.run, cell): cell for cell in cells}
        with noted_signals() as noted:  # what a handler raises inside of Ray is lost
            while waiting:
                finished, _ = self._ray.wait(list(waiting), num_returns=1, timeout=_LOOK_EVERY)
                results = [(waiting.pop(done), done) for done in finished]
                found = [(cell, self._result(cell, done)) for cell, done in results]
                if noted:  # and a cluster that was told, too, may have failed cells
                    raise ToldToEnd(noted[0])
                yield from found

    def _result(self, cell: Cell, done: Any) -> Result:
        try:
            result: Result = self._ray.get(done)
        except self._ray.exceptions.RayError as error:  # run_cell itself raises nothing
            return failed_result(cell, error)
        return replace(result, provenance={**result.provenance, "executor": "ray"})


def _call(run: Callable[[Cell], Result], cell: Cell) -> Result:
    return run(cell)
