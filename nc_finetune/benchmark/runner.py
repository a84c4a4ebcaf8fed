"""Run the cells of a grid, one result file each."""

from __future__ import annotations

import gc
import logging
import math
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from rich.console import Console
from rich.text import Text

from nc_finetune.backbones import PENULTIMATE, weights_hash
from nc_finetune.benchmark.choice import choose_once
from nc_finetune.benchmark.folder import lock_folder, look_into, remove_leftovers, set_aside
from nc_finetune.benchmark.grid import Cell, Grid
from nc_finetune.benchmark.provenance import environment
from nc_finetune.benchmark.recording import EpochTimer, LearningCurve, TestConfusion, delta_size
from nc_finetune.benchmark.results import Result, read_result, write_result
from nc_finetune.benchmark.run_collapse import MultilabelRunCollapse, RunCollapse
from nc_finetune.benchmark.shared_caches import pixel_folder, prefix_caches
from nc_finetune.benchmark.specs import DatasetSpec, split_size
from nc_finetune.classifier import DivergedError, ImageClassifier
from nc_finetune.data import ImageData
from nc_finetune.faults import explain
from nc_finetune.methods import AUTO
from nc_finetune.terminal import open_console, shown_steps


@dataclass
class _Fit:
    """A model that was trained with one learning rate, and what was seen on the way."""

    model: ImageClassifier
    trainer: L.Trainer
    learning_rate: float | None
    val_score: float
    nc1_layers: dict[str, float]
    collapse: dict[str, float]
    learning_curve: dict[str, list[float]]
    epoch_seconds: float
    weights_hash: str


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice for single runs out of a grid's progress bar."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reset_peak_memory() -> None:
    gc.collect()  # trainers and models refer to each other: those of the last run are still there
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: start the high-water mark of this process anew
    except OSError:
        return


def _peak_memory() -> int | None:
    """Return the most memory in use since the reset: of the accelerator, or of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


# Neighbouring cells of a grid train on the same sample: load it once.
_build_data = lru_cache(maxsize=1)(DatasetSpec.build)


def _snake(cls: type) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()


def _span(layers: str | Sequence[str] | None) -> str | None:
    """Name a key layer, or a span of them, in one word."""
    return layers if isinstance(layers, str) else "+".join(layers or ()) or None


def _score_name(data: ImageData) -> str:
    """Name the metric that learning rates are chosen by."""
    return "average_precision" if data.multi_label else "accuracy"


def _fit(cell: Cell, data: ImageData, learning_rate: float | None) -> _Fit:
    """Train once from the pre-trained weights."""
    L.seed_everything(cell.seed, verbose=False)
    backbone = cell.build_backbone()
    hashed = weights_hash(backbone.model)  # before a method adds anything to it
    model = cell.build_model(backbone, data, learning_rate)
    measure = (MultilabelRunCollapse if data.multi_label else RunCollapse)(cell.settings.normalize)
    timer, curve = EpochTimer(), LearningCurve(data.multi_label)
    confusion = [] if data.multi_label else [TestConfusion(data.num_classes)]
    epochs = cell.settings.epochs if model.method.trains else 1
    trainer = L.Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        callbacks=[measure, timer, curve, *confusion, *(prefix_caches(model) if cell.cache else [])],
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=data)
    return _Fit(
        model=model,
        trainer=trainer,
        learning_rate=learning_rate,
        val_score=100 * trainer.callback_metrics[f"val/{_score_name(data)}"].item(),
        nc1_layers=measure.values,
        collapse=measure.collapse,
        learning_curve=curve.values,
        epoch_seconds=statistics.median(timer.seconds),
        weights_hash=hashed,
    )


def _fit_all(cell: Cell, data: ImageData, advance: Callable[[], None]) -> tuple[_Fit | None, dict[str, float | None]]:
    """Train with every candidate rate; return the best fit by its validation score, and the score by rate."""
    best: _Fit | None = None
    scores: dict[str, float | None] = {}
    rates: list[float | None] = [*cell.method.learning_rates] or [None]
    for rate in rates:
        try:
            fit = _fit(cell, data, rate)
        except DivergedError:
            scores[f"{rate:g}"] = None
        else:
            if rate is not None:
                scores[f"{rate:g}"] = fit.val_score
            if best is None or (not fit.val_score <= best.val_score and not math.isnan(fit.val_score)):
                best = fit
        advance()
    return best, scores


def _planned(cell: Cell) -> Result:
    """Return what is known of a run before it starts."""
    samples_per_class, train_share = split_size(cell.samples_per_class)
    return Result(
        run_id=cell.run_id,
        backbone=cell.backbone.name,
        weights=cell.backbone.weights,
        dataset=cell.dataset_name,
        method=cell.method.method_class().name,
        key_layer=_span(cell.build_method().key_layer),
        options=_options(cell),
        seed=cell.seed,
        samples_per_class=samples_per_class,
        train_share=train_share,
        nc1_normalize=cell.settings.normalize,
        epochs=cell.settings.epochs,
        provenance=environment(),
    )


def _options(cell: Cell) -> dict[str, Any]:
    """Collect what tells a variant from others of its method."""
    sampling = {"balance_classes": True} if cell.dataset.balance_classes else {}
    specs = (cell.backbone, cell.method, cell.head, cell.loss)
    parts = (cell.backbone.model_options, *(spec.options for spec in specs), sampling)
    return {name: value for part in parts for name, value in part.items()}


def _run(cell: Cell, advance: Callable[[], None]) -> Result:
    settings = cell.settings
    _reset_peak_memory()
    data = _build_data(cell.dataset, cell.samples_per_class, cell.seed, settings.batch_size, settings.num_workers)
    if cell.cache:
        data.pixel_cache = pixel_folder()
    result = replace(
        _planned(cell),
        train_size=len(data.train_set),
        class_names=list(data.class_names),
        provenance={**environment(), "data_fingerprint": data.fingerprint},
    )
    if cell.key_layer == AUTO and cell.method.takes_key_layer:
        choice = choose_once(cell, data)
        cell = cell.with_key_layer(choice.block)
        result = replace(result, key_layer=choice.block, selection=choice.to_json())
    fit, scores = _fit_all(cell, data, advance)
    result = replace(result, learning_rates=scores, peak_memory_bytes=_peak_memory())
    if fit is None:
        return replace(result, status="diverged", error="the training loss was not finite at any learning rate")
    return _with_outcome(result, fit, data)


def _with_outcome(result: Result, fit: _Fit, data: ImageData) -> Result:
    """Add what the chosen fit came to; this is the one time that the test split is touched."""
    model = fit.model
    (test,) = fit.trainer.test(model, datamodule=data, verbose=False)
    confusions = [part for part in fit.trainer.callbacks if isinstance(part, TestConfusion)]  # type: ignore[attr-defined]
    nc1 = fit.nc1_layers[PENULTIMATE]
    collapsed = math.isnan(nc1) and not data.multi_label  # where labels never stand alone, nothing has collapsed
    measured = {name.removeprefix("test/"): 100 * value for name, value in test.items()}
    validated = {_score_name(data): fit.val_score}
    return replace(
        result,
        head=_snake(type(model.head)),
        loss=_snake(type(model.loss)),
        key_layer=_span(model.method.key_layers(model.backbone)),
        accuracy=measured.get("accuracy"),
        balanced_accuracy=measured.get("balanced_accuracy"),
        average_precision=measured.get("average_precision"),
        val_accuracy=validated.get("accuracy"),
        val_average_precision=validated.get("average_precision"),
        nc1=nc1,
        nc1_layers=dict(fit.nc1_layers),
        collapse=dict(fit.collapse),
        tuned_parameters=model.tuned_parameters,
        total_parameters=model.total_parameters,
        tuned_percent=100 * model.tuned_parameters / model.total_parameters,
        learning_rate=fit.learning_rate,
        epoch_seconds=fit.epoch_seconds,
        delta_bytes=delta_size(model),
        learning_curve=fit.learning_curve,
        confusion=confusions[0].rows if confusions else [],
        status="diverged" if collapsed else "ok",
        error="NC1 is undefined: the class means coincide" if collapsed else None,
        bad_images=[str(bad) for bad in data.bad_images()],
        provenance={**result.provenance, "weights_hash": fit.weights_hash},
    )


def failed_result(cell: Cell, error: Exception) -> Result:
    """Return the result of a cell that came to nothing.

    Args:
        cell: What was to run.
        error: Why it did not.

    Returns:
        A result with status ``"failed"``.
    """
    return replace(_planned(cell), status="failed", error=explain(error) or f"{type(error).__name__}: {error}")


def run_cell(cell: Cell, advance: Callable[[], None] = lambda: None) -> Result:
    """Run one cell: train with every candidate rate, choose on validation, test once.

    Args:
        cell: What to run.
        advance: Called after each fit.

    Returns:
        The result; one that failed carries the error, so that a grid goes on.
    """
    start = time.perf_counter()
    try:
        with _quiet():
            result = _run(cell, advance)
    except Exception as error:  # a failed cell is a result, too
        result = failed_result(cell, error)
    return replace(result, run_seconds=time.perf_counter() - start)


class Executor(Protocol):
    """How cells are run: one after the other, or on many machines."""

    def __call__(self, cells: Sequence[Cell], advance: Callable[[int], None]) -> Iterator[tuple[Cell, Result]]:
        """Run cells; yield each with its result as soon as it is there. ``advance`` counts fits."""


def run_serially(cells: Sequence[Cell], advance: Callable[[int], None]) -> Iterator[tuple[Cell, Result]]:
    """Run one cell after the other in this process.

    Args:
        cells: What to run.
        advance: Called after each fit with 1.

    Yields:
        Each cell with its result.
    """
    for cell in cells:
        yield cell, run_cell(cell, partial(advance, 1))


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
    call goes on where it was; what was running then runs again. Files that are no results of this version are renamed
    to ``.invalid`` and named.

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
    with lock_folder(out):
        remove_leftovers(folder)
        state = look_into(cells, folder, retry_failed)
        for path in set_aside(state.unreadable):
            (console or open_console(stderr=True)).print(
                Text(f"not a result of this version, set aside and run again: {path}"), soft_wrap=True
            )
        _run_missing(state.missing, folder, executor, console)
        return [read_result(folder / f"{cell.run_id}.json") for cell in cells]


def _run_missing(missing: Sequence[Cell], folder: Path, executor: Executor, console: Console | None) -> None:
    fits = sum(cell.method.fits for cell in missing)
    with shown_steps("fits", fits, console) as steps:
        done = 0
        for number, (cell, result) in enumerate(executor(missing, steps.advance), 1):
            write_result(result, folder)
            done += cell.method.fits  # also the fits that a failed cell left out
            named = f"{cell.dataset_name}, {cell.method.method_class().label}, seed {cell.seed}: {result.status}"
            steps.finish(done, f"run {number} of {len(missing)}, {named}")
