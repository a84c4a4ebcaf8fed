"""What callbacks share that solve a head instead of training it: a pass for the features, an epoch without steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from nc_finetune._common.lightning_internals import count_batch
from nc_finetune.cache import CachedRows
from nc_finetune.passes.batches import prepare_batch
from nc_finetune.passes.evaluation import evaluating
from nc_finetune.passes.measured_data import PlainPass, images_behind, loaders_of_split, some_of
from nc_finetune.passes.repeats import warn_of_differences

_FEWEST = 4  # images a class of a fit of few batches


def training_loader(trainer: Any, module: Any, name: str, *, cached: bool = True) -> Any:
    """Return the cache of what is frozen, or the images without augmentation; say where these are one version of many.

    A fit of fewer batches, as of ``limit_train_batches`` or ``fast_dev_run``, takes as many images, evenly over all of
    them, since they may be sorted by class, and four a class at least.

    Args:
        trainer: At the start or the end of its training.
        module: Its module.
        name: Of the callback, for messages.
        cached: Take the cache where there is one; otherwise the images in any case.

    Raises:
        TypeError: If the training data come in several loaders.
    """
    loader = trainer.train_dataloader
    if not (cached and _is_kept(loader)):
        if len(CombinedLoader(loader).flattened) != 1:
            raise TypeError(f"{name} takes its training data from one loader, and there are several; join them")
        loader = loaders_of_split(trainer, "train")[0]
        warn_of_differences(trainer, module, loader, name)
    limit = trainer.limit_train_batches
    if limit is None or (isinstance(limit, float) and limit == 1):
        return loader
    return some_of(loader, trainer.num_training_batches, trainer.world_size, _FEWEST * module.num_classes)


def validation_loader(trainer: Any, *, cached: bool = True) -> Any:
    """Return the first loader of the validation split, or as many of its batches as the fit takes; ``None`` without.

    Args:
        trainer: While it fits.
        cached: As for :func:`training_loader`.
    """
    if not trainer.enable_validation:
        return None
    if trainer.val_dataloaders is None:
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
    loader = loaders_of_split(trainer, "val")[0]
    if not cached:
        loader = images_behind(loader)
    limit = trainer.limit_val_batches
    if limit is None or (isinstance(limit, float) and limit == 1):
        return loader
    return some_of(loader, trainer.num_val_batches[0], trainer.world_size, 0)


def feature_batches(
    trainer: L.Trainer,
    module: Any,
    loader: Any,
    rank: int = 0,
    ranks: int = 1,
    features: Callable[[Any], Tensor] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pass a split, or the share of one process, through the network; yield what the head would see, and labels.

    Args:
        trainer: How batches get to the device is its business.
        module: An :class:`~nc_finetune.ImageClassifier`.
        loader: Of the split.
        rank: This process.
        ranks: Number of processes that share the split out.
        features: From inputs to what is wanted of them; ``None`` is what the head would see.
    """
    wanted = features or module.features
    with evaluating(trainer, module):
        for batch in PlainPass(loader, None, rank, ranks, shared_out=True).batches:
            inputs, labels = prepare_batch(trainer, module, batch)
            yield wanted(inputs).float(), labels


def leave_nothing_to_train(trainer: L.Trainer, module: Any) -> None:
    """Let the epoch end before its first step; solving counts as one, since no checkpoint is written before a step."""
    module.nothing_to_train = True
    loop = trainer.fit_loop.epoch_loop
    automatic, manual = loop.automatic_optimization.optim_progress, loop.manual_optimization.optim_step_progress
    steps = automatic.optimizer.step if module.automatic_optimization else manual
    steps.increment_ready()
    steps.increment_completed()
    trainer.strategy.lr_scheduler_configs = []  # which would step without an optimizer


def end_solved_epoch(trainer: Any) -> None:
    """Validate, since an epoch without batches does not, and end the fit."""
    if trainer.enable_validation:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
    count_batch(trainer.fit_loop.epoch_loop)
    trainer.should_stop = True


def _is_kept(loader: Any) -> bool:
    return isinstance(getattr(loader, "dataset", None), CachedRows)
