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
from torch import nn

from nc_finetune._common.explain import explain
from nc_finetune._common.terminal import open_console, shown_steps
from nc_finetune.backbones import PENULTIMATE, weights_hash
from nc_finetune.classifier import DivergedError, ImageClassifier
from nc_finetune.data import ImageData
from nc_finetune.errors import DataWarning
from nc_finetune.methods import AUTO
from nc_finetune.results.result import Result, read_result, write_result
from nc_finetune.run._cell.choice import choose_once
from nc_finetune.run._cell.recording import EpochTimer, LearningCurve, TestConfusion, delta_size
from nc_finetune.run._cell.run_collapse import MultilabelRunCollapse, RunCollapse
from nc_finetune.run._cell.shared_caches import pixel_folder, prefix_caches
from nc_finetune.run.folder import FolderState, lock_folder, look_into, remove_leftovers, set_aside
from nc_finetune.run.grid import Cell, Grid
from nc_finetune.run.provenance import environment
from nc_finetune.run.resolving import options_of
from nc_finetune.run.specs import DatasetSpec, split_size

_SPLITS = ("train", "val", "test")
_EXAMPLES = 3  # of images or names in one sentence


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


@contextmanager
def _quiet() -> Iterator[dict[str, None]]:
    """Keep Lightning's advice for single runs out of a grid's progress bar; collect what is said about the data."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.simplefilter("always", DataWarning)  # whoever calls ImageData, it is not advice
            show, notes = warnings.showwarning, dict[str, None]()

            def note(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
                if issubclass(category, DataWarning):
                    notes[str(message)] = None
                else:
                    show(message, category, *where, **more)

            warnings.showwarning = note
            yield notes
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


@lru_cache(maxsize=1)
def _build_data(dataset: DatasetSpec, _location: str, *sample: Any) -> tuple[ImageData, tuple[str, ...]]:
    """Load a training sample, and what is said of it; once for neighbouring cells of a grid that train on the same."""
    with _quiet() as notes:
        data = dataset.build(*sample)
        for split in _SPLITS:
            data.images(split)
    return data, tuple(notes)


def _data_of(cell: Cell) -> tuple[ImageData, tuple[str, ...]]:
    settings, dataset = cell.settings, cell.dataset
    sample = (cell.samples_per_class, cell.seed, settings.batch_size, settings.num_workers)
    return _build_data(dataset, dataset.location, *sample)


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
    model = cell.build_model(cell.build_backbone(), data, learning_rate)
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
    method, config = cell.build_method(), cell.config
    head = method.own_head or cell.head.class_to_build()
    return Result(
        run_id=cell.run_id,
        backbone=cell.backbone.name,
        weights=cell.backbone.weights,
        dataset=cell.dataset_name,
        method=cell.method.method_class().name,
        key_layer=_span(method.key_layer),
        config=config,
        options=options_of(config),
        head=_snake(head) if isinstance(head, type) else Result.head,
        loss=_snake(cell.loss.class_to_build() or nn.CrossEntropyLoss),
        seed=cell.seed,
        samples_per_class=samples_per_class,
        train_share=train_share,
        nc1_normalize=cell.settings.normalize,
        epochs=cell.settings.epochs,
        provenance=environment(),
    )


def _with_network(result: Result, cell: Cell) -> Result:
    """Add the hash of the network that every fit begins with, before a method adds anything to it, and its block."""
    L.seed_everything(cell.seed, verbose=False)
    backbone = cell.build_backbone()
    known = {**result.provenance, "weights_hash": weights_hash(backbone.model)}
    return replace(result, provenance=known, key_layer=_span(cell.build_method().key_layers(backbone)))


def _with_data(result: Result, cell: Cell, data: ImageData) -> Result:
    """Add what is trained and tested on."""
    doubled = data.duplicates
    counts = zip(data.class_names, data.class_counts, strict=True)
    hashes = {"data_fingerprint": data.fingerprint, "splits_hash": data.splits_hash}
    return replace(
        result,
        loss=_snake(type(cell.loss.build_for(data))),
        train_size=len(data.train_set),
        split_sizes={name: len(data.images(name)) for name in _SPLITS},
        class_names=list(data.class_names),
        untrained_classes=[name for name, count in counts if not count],
        doubled_images=len(doubled),
        doubled_examples=[str(found) for found in doubled[:_EXAMPLES]],
        provenance={**result.provenance, **hashes},
    )


def _run(cell: Cell, advance: Callable[[], None]) -> Result:
    _reset_peak_memory()
    data, notes = _data_of(cell)
    if cell.cache:
        data.pixel_cache = pixel_folder()
    result = _with_data(replace(_planned(cell), notes=list(notes)), cell, data)
    if cell.key_layer == AUTO and cell.method.takes_key_layer:
        choice = choose_once(cell, data)
        cell = cell.with_key_layer(choice.block)
        result = replace(result, selection=choice.to_json())
    result = _with_network(result, cell)
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
    unmeasured = _unmeasured_classes(data)
    # Where a class has no image, or labels never stand alone, NC1 is undefined whatever the network does.
    collapsed = math.isnan(nc1) and not data.multi_label and not unmeasured
    undefined = math.isnan(nc1) and bool(unmeasured)
    measured = {name.removeprefix("test/"): 100 * value for name, value in test.items()}
    validated = {_score_name(data): fit.val_score}
    return replace(
        result,
        head=_snake(type(model.head)),
        loss=_snake(type(model.loss)),
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
        notes=[
            *result.notes,
            *([f"NC1 is undefined: no training image of {_listed(unmeasured)}"] if undefined else []),
        ],
    )


def _unmeasured_classes(data: ImageData) -> list[str]:
    """Name the classes of which no training image decodes."""
    images = data.train_set
    bad = {} if images.bad is None else {row for row in images.indices if images.bad[row]}
    sets = images.table.label_sets
    good = [row for row in images.indices if row not in bad]
    present = {label for row in good for label in (sets[row] if sets else (images.table.labels[row],))}
    return [name for label, name in enumerate(data.class_names) if label not in present]


def _listed(names: Sequence[str]) -> str:
    """Name a few, and count the rest."""
    more = f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
    return ", ".join(map(repr, names[:_EXAMPLES])) + more


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
        with _quiet() as notes:
            result = _run(cell, advance)
        result = replace(result, notes=list(dict.fromkeys([*notes, *result.notes])))
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
    _build_data.cache_clear()  # the images may be others than those of an earlier grid
    console = console or open_console(stderr=True)
    with lock_folder(out):
        remove_leftovers(folder)
        state = look_into(cells, folder, retry_failed)
        _put_in_order(state, folder, console)
        _run_missing(state.missing, folder, executor, console)
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


def _run_missing(missing: Sequence[Cell], folder: Path, executor: Executor, console: Console) -> None:
    fits = sum(cell.method.fits for cell in missing)
    with shown_steps("fits", fits, console) as steps:
        done, told = 0, set[str]()
        for number, (cell, result) in enumerate(executor(missing, steps.advance), 1):
            write_result(result, folder)
            for note in [note for note in result.notes if note not in told]:
                console.print(Text(f"{result.dataset}: {note}"), soft_wrap=True)
                told.add(note)
            done += cell.method.fits  # also the fits that a failed cell left out
            named = f"{cell.dataset_name}, {cell.method.method_class().label}, seed {cell.seed}: {result.status}"
            steps.finish(done, f"run {number} of {len(missing)}, {named}")
