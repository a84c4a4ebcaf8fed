"""Candidates judged on folds of the training images alone, and refitted on all of them."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from nc_finetune._common.explain import explain
from nc_finetune._common.quiet import quietly
from nc_finetune.classifier import DivergedError, ImageClassifier
from nc_finetune.data import ImageData, TrainingFold, training_folds
from nc_finetune.errors import TrainingStoppedError
from nc_finetune.passes.evaluation import random_state_kept
from nc_finetune.selection.held_out import FORMAT, HeldOut, joined, read_held_out, write_held_out
from nc_finetune.selection.shared_caches import pixel_folder, prefix_caches
from nc_finetune.selection.trainer import StopAfter, quiet_trainer

_MOST_EPOCHS = 20  # after which held-out images are looked at

Build = Callable[[], ImageClassifier]
Callbacks = Callable[[ImageClassifier], Sequence[L.Callback]]
Each = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[tuple[int, Any]]]


class FoldError(TrainingStoppedError):
    """A fold could not be trained or judged; the message says which and why."""


class CrossValidation:
    """Judge ways to build a model by folds of the training images, and refit one on all of these.

    Every candidate is trained from its beginning once a fold, on the images of the other folds, and looks at those of
    its own after each epoch (of many epochs, after 20 of them). No image outside of the training split is read. All
    folds, candidates and the refit share what a frozen prefix gives of an image: it does not depend on who else is
    trained on.

    Learning rates go along all epochs, as the model says, and a curve tells what stopping earlier comes to. A refit
    stops there, with the rates of the whole length, as the fits that were judged did.

    Args:
        data: Whose training images are meant.
        folds: Folds; see :func:`~nc_finetune.data.training_folds`.
        epochs: Passes over the training images at the most.
        seed: Of the folds, of what models are built with, and of the order of the batches.
        callbacks: From a model to what accompanies its fit; by default caches that are shared
            (:func:`~nc_finetune.selection.shared_caches.prefix_caches`).
        progress: Folder in which each fold is kept once it is judged, so that a process that was killed goes on
            behind it; ``None`` keeps nothing. Whoever gives it removes it.
        groups: The group of each training image, which folds do not part; ``None`` is that of the data.
        identity: What candidates are beside their names, data and epochs: what was kept under another one is not taken.

    Raises:
        ValueError: If epochs are below 1, folds below 2, or no image can be held out.

    Attributes:
        folds: The folds.

    Example:
        >>> data = ImageData("sklearn:digits", image_size=32, samples_per_class=4)
        >>> judging = CrossValidation(data, folds=2, epochs=2)
        >>> found = judging.judge("probe", lambda: ImageClassifier("test_resnet", 10, weights=None))
        >>> found.logits.shape, found.epochs
        (torch.Size([2, 40, 10]), (1, 2))
        >>> trainer, model = judging.refit(lambda: ImageClassifier("test_resnet", 10, weights=None), found.epoch)
        >>> trainer.current_epoch == found.epoch
        True
    """

    def __init__(
        self,
        data: ImageData,
        folds: int = 5,
        *,
        epochs: int = 15,
        seed: int = 0,
        callbacks: Callbacks = prefix_caches,
        progress: Path | None = None,
        identity: str = "",
        groups: Sequence[str] | None = None,
    ) -> None:
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        self.data = data
        self.epochs = epochs
        self.seed = seed
        self.callbacks = callbacks
        self.folds = training_folds(data, folds, seed, groups)
        self._progress = progress
        self._identity = identity
        self._before = 0.0
        self._seen: dict[Path, Exception | None] = {}  # files of this process, and failures elsewhere

    @property
    def seconds_before(self) -> float:
        """What the folds took that an earlier process had judged, and this one found."""
        return self._before

    def judge(
        self, name: str, build: Build, advance: Callable[[], None] = lambda: None, *, folds: int | None = None
    ) -> HeldOut:
        """Train a candidate on every fold, or on the first of them.

        Args:
            name: Of the candidate, another one for each that is built otherwise.
            build: Builds its model anew, with torch's random numbers seeded.
            advance: Called after each fold.
            folds: On how many of them; ``None`` is all.

        Returns:
            What its models say of the images that each was not trained on.

        Raises:
            ValueError: If fewer than one fold is asked for.
            DivergedError: If the loss was not finite in a fold.
            FoldError: If a fold failed.
        """
        if folds is not None and folds < 1:
            raise ValueError(f"a candidate is judged on one fold at least, got {folds}")
        parts = []
        for number, fold in enumerate(self.folds[:folds]):
            place = self._place(name, fold)
            parts.append(self._part(name, build, number, place))
            advance()
        return joined(parts)

    def _part(self, name: str, build: Build, number: int, place: Path | None) -> HeldOut:
        """Return a fold from its file, or judge it."""
        if place is None:
            return self.judge_fold(name, build, number)
        if (failed := self._seen.get(place)) is not None:
            raise failed
        part = read_held_out(place)
        if part is None:
            part = self.judge_fold(name, build, number)
            write_held_out(part, place)
        elif place not in self._seen:
            self._before += part.seconds
        self._seen[place] = None
        return part

    def judge_ahead(
        self,
        candidates: Mapping[str, Build],
        folds: Sequence[int],
        each: Each,
        callbacks: Mapping[str, Callbacks] | None = None,
    ) -> None:
        """Judge candidates on some folds in other processes, and keep what comes, so that :meth:`judge` finds it.

        Args:
            candidates: What builds each, by its name; processes must be able to take it over.
            folds: Their numbers.
            each: Calls a function with each of several tuples of arguments, and yields the place of each call and what
                it returned, or the exception with which it ended.
            callbacks: What accompanies the fits of each, by its name, in place of what accompanies all.

        Raises:
            ValueError: If nothing is kept here.
        """
        if self._progress is None:
            raise ValueError("what other processes judge is kept in a folder; give progress")
        for data in (self.data, *self.folds):
            data.trainer = None  # of the last fit, with its model
        calls, places = [], []
        for number in folds:
            for name, build in candidates.items():
                place = self._place(name, self.folds[number])
                assert place is not None  # noqa: S101 - there is a folder
                if not place.exists():
                    judging = copy(self)
                    judging.callbacks = self.callbacks if callbacks is None else callbacks[name]
                    calls.append((judging, name, build, number))
                    places.append(place)
        for call, found in each(_judge_here, calls):
            if isinstance(found, HeldOut):
                write_held_out(found, places[call])
                found = None
            elif not isinstance(found, DivergedError | FoldError):  # a worker was lost
                found = FoldError(f"fold {calls[call][-1] + 1} of {len(self.folds)}, {calls[call][1]}: {found}")
            self._seen[places[call]] = found

    def refit(self, build: Build, epochs: int, callbacks: Iterable[L.Callback] = ()) -> tuple[L.Trainer, Any]:
        """Train a model on all training images, and on no others, for some of the epochs; nothing is validated.

        Args:
            build: Builds it, with torch's random numbers seeded.
            epochs: After how many to stop.
            callbacks: Further ones.

        Returns:
            The trainer, and the model.

        Raises:
            ValueError: If the epochs are not among those that there are.
            DivergedError: If the loss was not finite.
        """
        if not 1 <= epochs <= self.epochs:
            raise ValueError(f"epochs of a refit must lie in [1, {self.epochs}], got {epochs}")
        with random_state_kept():
            L.seed_everything(self.seed, verbose=False)
            model = build()
            trainer = quiet_trainer(
                self._length(model),
                [StopAfter(epochs), *callbacks, *self.callbacks(model)],
                limit_val_batches=0,
            )
            trainer.fit(model, datamodule=self.data)
        return trainer, model

    def _length(self, model: ImageClassifier) -> int:
        return self.epochs if model.method.trains else 1

    def judge_fold(self, name: str, build: Build, number: int) -> HeldOut:
        """Train a candidate on all folds but one, and judge it there; nothing is kept.

        Raises:
            DivergedError: If the loss was not finite.
            FoldError: If the fold failed.
        """
        fold = self.folds[number]
        where, start = f"fold {number + 1} of {len(self.folds)}, {name}", time.perf_counter()
        try:
            with random_state_kept(), warnings.catch_warnings():
                # Of a diverging fit, or of a fold without some label; nobody looks at what is logged.
                warnings.filterwarnings("ignore", message=".*(accuracy|precision) (is undefined|leaves out)")
                L.seed_everything(self.seed, verbose=False)
                model = build()
                watcher = _LogitWatcher(_looked_at(self._length(model)))
                trainer = quiet_trainer(self._length(model), [watcher, *self.callbacks(model)])
                trainer.fit(model, datamodule=fold)
        except DivergedError as error:
            raise DivergedError(f"{where}: {error}") from error
        except FoldError:
            raise
        except Exception as error:
            raise FoldError(f"{where}: {explain(error) or f'{type(error).__name__}: {error}'}") from error
        images = self.data.images("train")
        kept = [item for item in fold.held_out if images.bad is None or not images.bad[images.indices[item]]]
        if not kept:
            raise FoldError(f"{where}: none of the {len(fold.held_out)} images that it holds out decodes")
        return HeldOut(
            logits=torch.stack([torch.cat(batches) for batches in watcher.logits]),
            targets=torch.cat(watcher.targets),
            items=torch.tensor(kept),
            folds=torch.full((len(kept),), number),
            epochs=watcher.epochs,
            independent_classes=model.independent_classes,
            seconds=time.perf_counter() - start,
        )

    def _place(self, name: str, fold: TrainingFold) -> Path | None:
        """Name the file of a fold by everything that it follows from."""
        if self._progress is None:
            return None
        data = self.data
        of_data = data.fingerprint, data.splits_hash, data.image_size, data.interpolation, data.batch_size
        parts = (FORMAT, self._identity, name, *of_data, fold.held_out, self.epochs, self.seed)
        digest = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
        return self._progress / f"{digest}.safetensors"


def _judge_here(judging: CrossValidation, name: str, build: Build, number: int) -> HeldOut:
    """Judge a fold in a process that was given everything."""
    if judging.data.pixel_cache is not None:
        judging.data.pixel_cache = pixel_folder()
    with quietly():
        return judging.judge_fold(name, build, number)


class _LogitWatcher(L.Callback):
    """Keep the logits of validation images after some epochs."""

    def __init__(self, epochs: tuple[int, ...]) -> None:
        self.epochs = epochs
        self.logits: list[list[Tensor]] = []
        self.targets: list[Tensor] = []
        self._handle: Any = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at what the head gives, where this epoch counts."""
        if trainer.current_epoch + 1 in self.epochs:
            self.logits.append([])
            self.targets = []
            self._handle = pl_module.get_submodule("head").register_forward_hook(self._take)

    def _take(self, _head: nn.Module, _inputs: Any, logits: Tensor) -> None:
        self.logits[-1].append(logits.detach().float().cpu())

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Keep the labels."""
        if self._handle is not None:
            self.targets.append(batch[1].cpu())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the head alone."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def _looked_at(epochs: int) -> tuple[int, ...]:
    """Return after which epochs held-out images are looked at: evenly spread, the last among them.

    Example:
        >>> _looked_at(3), _looked_at(50)[-3:]
        ((1, 2, 3), (45, 48, 50))
    """
    number = min(epochs, _MOST_EPOCHS)
    return tuple(-(-epochs * place // number) for place in range(1, number + 1))
