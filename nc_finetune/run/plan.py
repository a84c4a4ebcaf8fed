"""What a grid will run, and about how long that takes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from rich.table import Table

from nc_finetune._common.terminal import as_text, duration, name_table
from nc_finetune.data import ImageData
from nc_finetune.results.result import Result
from nc_finetune.run.cell import Cell
from nc_finetune.run.folder import FolderState, look_into
from nc_finetune.run.grid import Grid

_TIMED_STEPS = 3


@dataclass(frozen=True)
class PlannedCell:
    """A cell that is to run.

    Attributes:
        cell: What is run.
        seconds: About how long it takes; ``None`` where that cannot be told.
        reason: Why it cannot be told.
    """

    cell: Cell
    seconds: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a grid has and what it will run.

    Attributes:
        cells: All cells.
        state: What is done already.
        planned: What is missing, with an estimate.
    """

    cells: list[Cell]
    state: FolderState
    planned: list[PlannedCell]

    @property
    def seconds(self) -> float:
        """Estimate of the whole, as far as it can be told."""
        return sum(item.seconds or 0.0 for item in self.planned)


def plan_grid(grid: Grid, out: Path, retry_failed: bool = False) -> Plan:
    """Find out what is missing of a grid, and estimate how long it takes on this machine.

    Where the folder holds a finished run of the same kind, its time counts. Otherwise a few training steps are timed,
    with random weights on the first images of the data; time for decoding, validation and the test is added.

    Args:
        grid: What is to run.
        out: Where the results go; nothing is written.
        retry_failed: Count cells that failed or diverged as missing.

    Returns:
        The plan.
    """
    cells = grid.cells()
    state = look_into(cells, out / "results", retry_failed)
    times = _times_of_finished(cells, list(state.done.values()))
    return Plan(cells, state, [_estimate(cell, times) for cell in state.missing])


def _kind(cell: Cell) -> tuple[object, ...]:
    """What cells have in common that take the same time: everything but the seed."""
    return replace(cell, seed=0).run_id, cell.settings.num_workers, cell.cache


def _times_of_finished(cells: Sequence[Cell], results: Sequence[Result]) -> dict[tuple[object, ...], float]:
    by_id = {result.run_id: result for result in results}
    times: dict[tuple[object, ...], list[float]] = {}
    for cell in cells:
        result = by_id.get(cell.run_id)
        if result is not None and result.status == "ok" and result.run_seconds is not None:
            times.setdefault(_kind(cell), []).append(result.run_seconds)
    return {kind: statistics.median(seconds) for kind, seconds in times.items()}


def _estimate(cell: Cell, times: dict[tuple[object, ...], float]) -> PlannedCell:
    if (known := times.get(_kind(cell))) is not None:
        return PlannedCell(cell, known)
    try:
        return PlannedCell(cell, _measured_seconds(_Hashable(cell)))
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        return PlannedCell(cell, None, f"{type(error).__name__}: {error}".partition("\n")[0])


class _Hashable:
    """A cell that is equal to the others of its kind, so that each kind is measured once."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self._kind = _kind(cell)

    def __hash__(self) -> int:
        return hash(self._kind)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashable) and self._kind == other._kind


@cache
def _measured_seconds(wrapped: _Hashable) -> float:
    cell, settings = wrapped.cell, wrapped.cell.settings
    data = cell.data_spec.build(cell.samples_per_class, cell.seed, settings.batch_size, settings.num_workers)
    train, evaluate = _step_seconds(cell, data)
    batches = [math.ceil(len(split) / settings.batch_size) for split in (data.train_set, data.val_set, data.test_set)]
    trains = cell.build_method().trains
    epochs = settings.epochs if trains else 1
    fit = epochs * batches[0] * train + (batches[0] + batches[1]) * evaluate
    # The trials of an automatic choice took 1.3 fits of SCL-FT, 1.7 of side FT.
    trials = 1.5 * fit if cell.key_layer == "auto" and cell.method.takes_key_layer else 0.0
    fits = cell.fits * fit
    if cell.choice.by_folds and trains:
        folds, share = cell.choice.folds, 1 / cell.choice.folds
        # Of a fold, its own images are judged after each epoch and the others trained on; the refit comes on top.
        fits = fit + (cell.fits - 1) * epochs * batches[0] * ((1 - share) * train + share * evaluate)
        trials *= folds
    return fits + batches[2] * evaluate + trials


def _step_seconds(cell: Cell, data: ImageData) -> tuple[float, float]:
    """Time a training step and a batch of evaluation, decoding included."""
    layer = cell.backbone.build_without_memory().middle_block if cell.key_layer == "auto" else cell.key_layer
    probe = cell if layer is None else cell.with_key_layer(layer)
    model = probe.build_model(probe.backbone.build(None), data, learning_rate=1e-4)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    start = time.perf_counter()
    batch = next(iter(data.eval_dataloader("train")))
    decoding = time.perf_counter() - start
    images, labels = (part.to(device) for part in batch)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def train() -> None:
        model.loss(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    def evaluate() -> None:
        with torch.no_grad():
            model(images)

    return _time(train) + decoding, _time(evaluate) + decoding


def _time(action: Callable[[], None]) -> float:
    """Return the shortest time of a few: what else the machine does only ever adds."""
    action()
    times = []
    for _ in range(_TIMED_STEPS):
        start = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def plan_table(plan: Plan) -> Table:
    """Show what is done and what is missing, a line for each data set, backbone, training size and method.

    Args:
        plan: The plan.

    Returns:
        A table for the terminal.
    """
    lines: dict[tuple[str, ...], list[Cell]] = {}
    for cell in plan.cells:
        lines.setdefault(_line(cell), []).append(cell)
    missing = {item.cell.run_id: item for item in plan.planned}
    table = name_table(["data set", "backbone", "training size", "method", "key layer"], ["done", "to run", "time"])
    for line, cells in lines.items():
        here = [missing[cell.run_id] for cell in cells if cell.run_id in missing]
        known = [item.seconds for item in here if item.seconds is not None]
        time_ = duration(sum(known)) if known else ("?" if here else "")
        table.add_row(*as_text([*line, str(len(cells) - len(here)), str(len(here)), time_]))
    return table


def _line(cell: Cell) -> tuple[str, ...]:
    size = cell.samples_per_class
    words = {int: f"{size} a class", float: f"{100 * size:g} %" if isinstance(size, float) else ""}.get(
        type(size), "whole split"
    )
    layer = cell.key_layer or "middle" if cell.method.takes_key_layer else ""
    return cell.dataset_name, cell.backbone.name, words, cell.method.method_class().label, layer
