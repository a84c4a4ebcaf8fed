"""Train a cell for every candidate rate, and choose by the validation split or by folds of the training images."""

from __future__ import annotations

import json
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from nc_finetune.backbones import PENULTIMATE
from nc_finetune.classifier import DivergedError, ImageClassifier
from nc_finetune.data import ImageData
from nc_finetune.methods import Control
from nc_finetune.run._cell.calibration import HeadLogits, Judged, found_temperature
from nc_finetune.run._cell.recording import EpochTimer, LearningCurve, TestConfusion
from nc_finetune.run._cell.run_collapse import MultilabelRunCollapse, RunCollapse
from nc_finetune.run.cell import Cell
from nc_finetune.selection import CrossValidation, HeldOut, RateSearch, prefix_caches, quiet_trainer, search_rates
from nc_finetune.selection.rates import MOST_EXTENSIONS, OptionSearch, is_better, search_options

_DIGITS = 4  # behind the point, of per cent


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
    epochs: int
    class_spread: dict[str, float]
    closest_pairs: dict[str, float]
    temperature: float | None  # of images that it was not fitted to
    tempered: float  # by what its logits have been divided already


@dataclass
class Trained:
    """What became of a cell.

    Attributes:
        fit: The chosen one; ``None`` where all diverged.
        scores: What rates were chosen by, in per cent, by rate; ``None`` where it diverged.
        choice: How else they were chosen, as a result says it.
        seconds_before: What an earlier process has taken for it.
        error: Why there is no fit.
    """

    fit: Fit | None
    scores: dict[str, float | None] = field(default_factory=dict)
    choice: dict[str, Any] = field(default_factory=dict)
    seconds_before: float = 0.0
    error: str = "the training loss was not finite at any learning rate"


def score_name(data: ImageData) -> str:
    """Name the metric that learning rates are chosen by."""
    return "average_precision" if data.multi_label else "accuracy"


class _Notes:
    """What is noted of a fit."""

    def __init__(self, cell: Cell, data: ImageData) -> None:
        self.measure = (MultilabelRunCollapse if data.multi_label else RunCollapse)(cell.settings.normalize)
        self.timer, self.curve = EpochTimer(), LearningCurve(data.multi_label)
        one_label: list[L.Callback] = [TestConfusion(data.num_classes), HeadLogits()]
        self._tested = [] if data.multi_label else one_label
        self._solver = cell.method.solver()

    @property
    def callbacks(self) -> list[L.Callback]:
        return [self.measure, self.timer, self.curve, *self._tested, *([self._solver] if self._solver else [])]

    @property
    def solved_score(self) -> float | None:
        """Validation accuracy of the head that was taken after the fit, where one was."""
        found = self._solver
        score = None if found is None or found.taken is None else found.scores.get(found.taken)
        return None if score is None else score.accuracy

    def of(
        self,
        model: ImageClassifier,
        trainer: L.Trainer,
        rate: float | None,
        score: float,
        judged: Judged | None = None,
    ) -> Fit:
        known = [judged, *(part.of("validation") for part in self._tested if isinstance(part, HeadLogits))]
        callbacks: Sequence[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        found, done = found_temperature(next((one for one in known if one is not None), None), callbacks)
        return Fit(
            model=model,
            trainer=trainer,
            learning_rate=rate,
            val_score=score,
            nc1_layers=self.measure.values,
            collapse=self.measure.collapse,
            learning_curve=self.curve.values,
            epoch_seconds=statistics.median(self.timer.seconds),
            epochs=len(self.timer.seconds),
            class_spread=self.measure.class_values.get(PENULTIMATE, {}),
            closest_pairs=self.measure.closest_pairs.get(PENULTIMATE, {}),
            temperature=found,
            tempered=done,
        )


def _build(cell: Cell, data: ImageData, learning_rate: float | None) -> ImageClassifier:
    """Build a model from the pre-trained weights."""
    return cell.build_model(cell.build_backbone(), data, learning_rate)


def _caches(cell: Cell) -> Callable[[ImageClassifier], Sequence[L.Callback]]:
    return prefix_caches if cell.cache and not cell.method.augment else lambda _: ()


def _fit(cell: Cell, data: ImageData, learning_rate: float | None) -> Fit:
    """Train once on the training split, and judge by the validation split, where it is not empty."""
    L.seed_everything(cell.seed, verbose=False)
    model, notes = _build(cell, data, learning_rate), _Notes(cell, data)
    epochs = cell.settings.epochs if model.method.trains else 1
    callbacks = [*notes.callbacks, *_caches(cell)(model)]
    unused = {"limit_val_batches": 0} if cell.choice.by_folds else {}
    trainer = quiet_trainer(epochs, callbacks, check_val_every_n_epoch=epochs, **unused)
    with warnings.catch_warnings():
        if isinstance(model.method, Control):  # colours come of no layer, and what looks at nothing has no directions
            warnings.filterwarnings("ignore", message=r"\w*RunCollapse on the train split could not measure")
        trainer.fit(model, datamodule=data)
    logged = trainer.callback_metrics.get(f"val/{score_name(data)}")
    score = math.nan if logged is None else logged.item()
    if notes.solved_score is not None:
        score = notes.solved_score
    return notes.of(model, trainer, learning_rate, 100 * score)


def train(
    cell: Cell, data: ImageData, advance: Callable[[], None], progress: Path | None = None, weights: str = ""
) -> Trained:
    """Train a cell, and choose its rate, and by folds its number of epochs.

    Args:
        cell: What is run, with the key layer that it has by now.
        data: Its sample.
        advance: Called after each of ``cell.fits`` fits.
        progress: Folder for what is kept of folds; ``None`` keeps nothing.
        weights: Hash of the network that fits begin with.

    Returns:
        The fit that is to be tested, or why there is none.
    """
    if not cell.method.learning_rates:
        fit = _fit(cell, data, None)
        advance()
        return Trained(fit)
    return (_by_folds if cell.choice.by_folds else _by_validation)(cell, data, advance, progress, weights)


def _by_validation(cell: Cell, data: ImageData, advance: Callable[[], None], *_: Any) -> Trained:
    best: Fit | None = None

    def score(rate: float) -> float | None:
        nonlocal best
        try:
            fit = _fit(cell, data, rate)
        except DivergedError:
            return None
        finally:
            if rate in cell.method.learning_rates:
                advance()
        if best is None or is_better(fit.val_score, best.val_score):
            best = fit
        return fit.val_score

    search = _search(cell, score)
    choice = {"by": "validation", "extensions": search.extensions} if cell.choice.extend_rates else {}
    return Trained(best, {f"{rate:g}": value for rate, value in search.scores.items()}, choice)


def _by_folds(cell: Cell, data: ImageData, advance: Callable[[], None], progress: Path | None, weights: str) -> Trained:
    judging = CrossValidation(
        data,
        cell.choice.folds,
        epochs=cell.settings.epochs,
        seed=cell.seed,
        callbacks=_caches(cell),
        progress=progress,
        identity=f"{json.dumps(cell.config, sort_keys=True)} {weights}",
    )
    found: dict[tuple[str, float], HeldOut | None] = {}

    def build(options: Mapping[str, Any], rate: float) -> Callable[[], ImageClassifier]:
        return partial(_build, cell.with_options(options), data, rate)

    def score(options: dict[str, Any], rate: float) -> float | None:
        key = _text(options), rate
        if key in found:
            return None if (known := found[key]) is None else known.score
        listed = rate in cell.method.learning_rates and options == cell.method.first_options
        left, asked = cell.choice.folds if listed else 0, (options, rate)

        def step() -> None:
            nonlocal left
            if left:
                left -= 1
                advance()

        found[key] = None
        name = f"learning rate {rate:g} {key[0]}".strip()
        try:
            found[key] = judged = judging.judge(name, build(*asked), step)
        except DivergedError:
            return None
        finally:
            while left:
                step()
        return judged.score

    extensions = MOST_EXTENSIONS if cell.choice.extend_rates else 0
    best = search_options(cell.method.learning_rates, cell.method.candidates or {}, score, extensions)
    search, text = best.rates, _text(best.chosen)
    held = {rate: judged for (words, rate), judged in found.items() if words == text and judged is not None}
    known = search.chosen if search.chosen is not None else next(iter(held), None)
    scores = {f"{rate:g}": None if value is None else _per_cent(value) for rate, value in search.scores.items()}
    if known is None:
        advance()
        return Trained(None, scores, seconds_before=judging.seconds_before)
    chosen, notes = held[known], _Notes(cell, data)
    trained = Trained(
        None,
        scores,
        _in_words(judging, best, held, chosen, [one.seconds for one in found.values() if one is not None]),
        judging.seconds_before,
    )
    try:
        trainer, model = judging.refit(build(best.chosen, known), chosen.epoch, notes.callbacks)
    except DivergedError as error:
        trained.error = f"on all training images, with the rate that folds chose: {error}"
        return trained
    finally:
        advance()
    judged = None if chosen.multi_label else (chosen.chosen_logits, chosen.targets)
    trained.fit = notes.of(model, trainer, known, _per_cent(chosen.score), judged)
    return trained


def _text(options: Mapping[str, Any]) -> str:
    """Name values of options; nothing where there are none."""
    return json.dumps(options, sort_keys=True) if options else ""


def _in_words(
    judging: CrossValidation,
    search: OptionSearch,
    found: dict[float, HeldOut],
    chosen: HeldOut,
    seconds: Sequence[float],
) -> dict[str, Any]:
    """Say how folds chose, as a result keeps it; scores in per cent."""
    tried = {
        name: {text: None if value is None else _per_cent(value) for text, value in scores.items()}
        for name, scores in search.scores.items()
    }
    options = {"options": search.chosen, "by_options": tried, "edges": list(search.edges)} if tried else {}
    return {
        "by": "folds",
        "folds": len(judging.folds),
        "images": len(chosen.items),
        "epochs": list(chosen.epochs),
        "scores": {f"{rate:g}": [_per_cent(value) for value in held.scores] for rate, held in found.items()},
        "stopped_after": {f"{rate:g}": held.epoch for rate, held in found.items()},
        "extensions": search.rates.extensions,
        "seconds": sum(seconds),
        **options,
    }


def _search(cell: Cell, score: Callable[[float], float | None]) -> RateSearch:
    return search_rates(cell.method.learning_rates, score, MOST_EXTENSIONS if cell.choice.extend_rates else 0)


def _per_cent(value: float) -> float:
    return round(100 * value, _DIGITS)
