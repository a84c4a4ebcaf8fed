"""Candidates judged on folds of the training images alone, and refitted on all of them."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nc_finetune._common.atomic_files import write_atomically
from nc_finetune._common.explain import explain
from nc_finetune.classifier import DivergedError, ImageClassifier
from nc_finetune.data import ImageData, TrainingFold, training_folds
from nc_finetune.errors import TrainingStoppedError
from nc_finetune.passes.evaluation import random_state_kept
from nc_finetune.selection.held_out import HeldOut, joined
from nc_finetune.selection.shared_caches import prefix_caches
from nc_finetune.selection.trainer import StopAfter, quiet_trainer

_MOST_EPOCHS = 20  # after which held-out images are looked at
_FORMAT = 1

Build = Callable[[], ImageClassifier]


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
        callbacks: Callable[[ImageClassifier], Sequence[L.Callback]] = prefix_caches,
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
            part = None if place is None else _read(place)
            if part is None:
                part = self._judge_fold(name, build, number, fold)
                if place is not None:
                    _write(part, place)
            else:
                self._before += part.seconds
            parts.append(part)
            advance()
        return joined(parts)

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

    def _judge_fold(self, name: str, build: Build, number: int, fold: TrainingFold) -> HeldOut:
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
        parts = (_FORMAT, self._identity, name, *of_data, fold.held_out, self.epochs, self.seed)
        digest = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
        return self._progress / f"{digest}.safetensors"


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


def _write(part: HeldOut, path: Path) -> None:
    tensors = {"logits": part.logits, "targets": part.targets, "items": part.items, "folds": part.folds}
    said = {"epochs": part.epochs, "independent_classes": part.independent_classes, "seconds": part.seconds}
    metadata = {"format": str(_FORMAT), "said": json.dumps(said)}
    write_atomically(path, save({name: value.contiguous() for name, value in tensors.items()}, metadata))


def _read(path: Path) -> HeldOut | None:
    """Return what was kept of a fold; ``None`` where nothing is, or it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("logits", "targets", "items", "folds")}
            said = json.loads(file.metadata()["said"])
        return HeldOut(**tensors, **{**said, "epochs": tuple(said["epochs"])})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None
