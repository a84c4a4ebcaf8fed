"""Train a cell once for every candidate rate, and choose by the validation score."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import lightning as L

from nc_finetune.classifier import DivergedError, ImageClassifier
from nc_finetune.data import ImageData
from nc_finetune.run._cell.recording import EpochTimer, LearningCurve, TestConfusion
from nc_finetune.run._cell.run_collapse import MultilabelRunCollapse, RunCollapse
from nc_finetune.run._cell.shared_caches import prefix_caches
from nc_finetune.run.cell import Cell


@dataclass
class Fit:
    """A model that was trained with one learning rate, and what was seen on the way."""

    model: ImageClassifier
    trainer: L.Trainer
    learning_rate: float | None
    val_score: float
    nc1_layers: dict[str, float]
    collapse: dict[str, float]
    learning_curve: dict[str, list[float]]
    epoch_seconds: float


def score_name(data: ImageData) -> str:
    """Name the metric that learning rates are chosen by."""
    return "average_precision" if data.multi_label else "accuracy"


def _fit(cell: Cell, data: ImageData, learning_rate: float | None) -> Fit:
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
    return Fit(
        model=model,
        trainer=trainer,
        learning_rate=learning_rate,
        val_score=100 * trainer.callback_metrics[f"val/{score_name(data)}"].item(),
        nc1_layers=measure.values,
        collapse=measure.collapse,
        learning_curve=curve.values,
        epoch_seconds=statistics.median(timer.seconds),
    )


def fit_all(cell: Cell, data: ImageData, advance: Callable[[], None]) -> tuple[Fit | None, dict[str, float | None]]:
    """Train with every candidate rate; return the best fit by its validation score, and the score by rate."""
    best: Fit | None = None
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
