"""The loaders whose images a frozen prefix may be run on once: which are fit for it, and what they give."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, IterableDataset

from nc_finetune._common.data_facts import told_by
from nc_finetune._common.lightning_internals import current_datamodule, fetch_anew, loaders_in_use
from nc_finetune.backbones import SplitError
from nc_finetune.callbacks._collapse.callback import CollapseCallback
from nc_finetune.callbacks._prefix.fill import read_share
from nc_finetune.data.batch_transforms import numbers_as_they_come
from nc_finetune.passes.batches import HOOKS, prepare_batch
from nc_finetune.passes.evaluation import evaluating, random_state_kept
from nc_finetune.passes.repeats import what_differs

_LOOKED_AT = 4


def usable_loaders(trainer: Any, loop: Any) -> list[DataLoader[Any]]:
    """Return the loaders of a loop.

    Raises:
        SplitError: If what they give cannot be kept.
    """
    found = loaders_in_use(loop) or []
    training = loop is trainer.fit_loop
    if not found or (training and len(found) > 1) or not all(map(_has_numbered_samples, found)):
        kind = "the training data must come in batches of one DataLoader" if training else "data must come in batches"
        raise SplitError(f"{kind}, over a dataset whose samples have numbers")
    if training and trainer.reload_dataloaders_every_n_epochs:
        raise SplitError("training data that are loaded anew every few epochs cannot be kept")
    return found


def _has_numbered_samples(loader: Any) -> bool:
    return (
        isinstance(loader, DataLoader)
        and loader.batch_sampler is not None
        and hasattr(loader.dataset, "__len__")
        and not isinstance(loader.dataset, IterableDataset)
    )


def randomness(
    trainer: L.Trainer, pl_module: Any, loader: DataLoader[Any], *, training: bool = False, number: int = 0
) -> str | None:
    """Say what makes images others each time, on any process.

    Raises:
        SplitError: If they cannot be read by their numbers.
    """
    if told_by(trainer).deterministic:
        return None
    try:
        reason = what_differs(trainer, pl_module, loader, training=training, number=number)
    except Exception as error:  # of the data, or of hooks; training meets it again if it is no matter of the cache
        raise SplitError(f"samples cannot be read by their numbers ({type(error).__name__}: {error})") from error
    agreed = trainer.strategy.reduce_boolean_decision(reason is not None, all=False)
    return (reason or "another process read other images the second time") if agreed else None


def begin_again(loop: Any) -> None:
    """Let a loop take its batches from what its loaders give now, with the random numbers that it has drawn already."""
    generators = {
        holder.generator: holder.generator.get_state()
        for loader in loaders_in_use(loop) or ()
        for holder in (loader, loader.sampler)
        if isinstance(getattr(holder, "generator", None), torch.Generator)
    }
    with random_state_kept():
        fetch_anew(loop)
    for generator, state in generators.items():
        generator.set_state(state)


def identity(trainer: Any, pl_module: Any, loader: DataLoader[Any]) -> str | None:
    """Say which images a loader gives, where its datamodule knows without decoding them and the module changes none."""
    datamodule = current_datamodule(trainer)
    own = any(is_overridden(hook, pl_module) and not is_overridden(hook, datamodule) for hook in HOOKS)
    return None if datamodule is None or own else told_by(trainer).identity(loader.dataset)


def first_images(trainer: L.Trainer, pl_module: Any, loader: DataLoader[Any], training: bool) -> Any:
    """Return a few images as the network sees them, to try a cut on.

    Raises:
        SplitError: If they do not decode.
    """
    with evaluating(trainer, pl_module, training=training), numbers_as_they_come():
        batch = next(read_share(loader, range(min(_LOOKED_AT, len(loader.dataset)))), None)  # type: ignore[arg-type]
        if batch is None:
            raise SplitError("the first images do not decode")
        return prepare_batch(trainer, pl_module, batch)[0]


def is_measured(trainer: L.Trainer, split: str) -> bool:
    """Tell whether a callback measures layers on a split."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(callback, CollapseCallback) and split in callback.splits for callback in callbacks)
