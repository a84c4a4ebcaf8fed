"""Run one cell of a grid, to a result whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nc_finetune._common.quiet import quietly
from nc_finetune.data import ImageData
from nc_finetune.methods import AUTO
from nc_finetune.results.result import Result
from nc_finetune.run._cell.choice import choose_once
from nc_finetune.run._cell.memory import peak_memory, reset_peak_memory
from nc_finetune.run._cell.outcome import SPLITS, failed_result, planned_result, with_data, with_network, with_outcome
from nc_finetune.run._cell.training import train
from nc_finetune.run._cell.work import counted_work
from nc_finetune.run.cell import Cell
from nc_finetune.run.specs import DatasetSpec
from nc_finetune.selection import forget_prefixes, pixel_folder


def run_cell(cell: Cell, advance: Callable[[], None] = lambda: None, progress: Path | None = None) -> Result:
    """Run one cell: train with every candidate rate, choose on validation or by folds, test once.

    Args:
        cell: What to run.
        advance: Called after each fit.
        progress: Folder that keeps what is done of the choice, for the same call after this process was killed;
            ``None`` keeps nothing.

    Returns:
        The result; one that failed carries the error, so that a grid goes on.
    """
    if cell.settings.count_flops:
        forget_prefixes()  # what a run costs must not depend on which one came before
    with counted_work(cell.settings.count_flops) as work:
        try:
            with quietly() as notes:
                result = _run(cell, advance, progress)
            result = replace(result, notes=list(dict.fromkeys([*notes, *result.notes])))
        except Exception as error:  # a failed cell is a result, too
            result = failed_result(cell, error)
    before = result.run_seconds or 0.0
    return replace(
        result,
        run_seconds=work.seconds + before,
        processor_seconds=None if before or cell.settings.count_flops else work.processor_seconds,
        flops=None if before else work.flops,
    )


def _run(cell: Cell, advance: Callable[[], None], progress: Path | None) -> Result:
    """Return the result, with the seconds alone of what this call did not do itself."""
    reset_peak_memory()
    data, notes = _data_of(cell)
    if cell.cache:
        data.pixel_cache = pixel_folder()
    result = with_data(replace(planned_result(cell), notes=list(notes)), cell, data)
    before = 0.0
    if cell.key_layer == AUTO and cell.method.takes_key_layer:
        choice, known = choose_once(cell, data)
        before = choice.seconds if known else 0.0
        cell = cell.with_key_layer(choice.block)
        result = replace(result, selection=choice.to_json())
    result = with_network(result, cell)
    trained = train(cell, data, advance, progress, str(result.provenance["weights_hash"]))
    result = replace(
        result,
        learning_rates=trained.scores,
        choice=trained.choice,
        peak_memory_bytes=peak_memory(),
        run_seconds=before + trained.seconds_before,
    )
    if trained.fit is None:
        return replace(result, status="diverged", error=trained.error)
    return with_outcome(result, trained.fit, data)


@lru_cache(maxsize=1)
def load_data(dataset: DatasetSpec, _location: str, *sample: Any) -> tuple[ImageData, tuple[str, ...]]:
    """Load a training sample, and what is said of it; once for neighbouring cells of a grid that train on the same."""
    with quietly() as notes:
        data = dataset.build(*sample)
        for split in SPLITS:
            data.images(split)
    return data, tuple(notes)


def _data_of(cell: Cell) -> tuple[ImageData, tuple[str, ...]]:
    settings, dataset = cell.settings, cell.data_spec
    sample = (cell.samples_per_class, cell.seed, settings.batch_size, settings.num_workers)
    return load_data(dataset, dataset.location, *sample)
