"""Averages of the weights, in the place of these while something is measured, as Lightning has them in validation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from nc_finetune._common.lightning_internals import averages
from nc_finetune.callbacks.average_epochs import catch_up


@contextmanager
def averages_in_place(trainer: L.Trainer, module: L.LightningModule, callbacks: Iterable[L.Callback]) -> Iterator[None]:
    """Put averages in the place of a module's weights, and the weights back afterwards, after an exception too.

    The callbacks do it by their own hooks, under which they validate: whenever there is an average, if only that of the
    weights before training, and of :class:`~nc_finetune.callbacks.AverageEpochs` before its start the model itself.

    Args:
        trainer: The trainer.
        module: Its module, which has the weights that are trained.
        callbacks: Of the trainer; those that are no ``WeightAveraging``, or have no average, are passed over.
    """
    found = [(part, average) for part in callbacks if isinstance(part, WeightAveraging) for average in averages([part])]
    if found and _takes_no_steps(module):
        catch_up(module)  # as its validation does: the average knows of no head that was solved
    with ExitStack() as back:
        for callback, average in found:
            back.enter_context(_digits_kept(getattr(average, "module", average), module))
            callback.on_validation_epoch_start(trainer, module)
            back.callback(callback.on_validation_epoch_end, trainer, module)
        yield


def unknown_averages(callbacks: Iterable[L.Callback]) -> list[str]:
    """Name the callbacks that may validate an average, in a way that is not known.

    ``StochasticWeightAveraging`` is none of them: it validates the weights that are trained.

    Args:
        callbacks: Of a trainer.

    Example:
        >>> unknown_averages([WeightAveraging(), L.Callback()])
        []
    """
    hooks = ("on_validation_start", "on_validation_epoch_start")
    return [
        type(part).__name__
        for part in callbacks
        if averages([part])
        and not isinstance(part, WeightAveraging)
        and any(getattr(type(part), hook) is not getattr(L.Callback, hook) for hook in hooks)
    ]


def _takes_no_steps(module: Any) -> bool:
    """Tell whether a module is an ImageClassifier whose head is solved, or given."""
    trains = getattr(getattr(module, "method", None), "trains", True)
    return hasattr(module, "taken_head") and (module.nothing_to_train or not trains)


@contextmanager
def _digits_kept(average: nn.Module, module: nn.Module) -> Iterator[None]:
    """Keep an average as it is where the module has fewer digits, as in ``bf16-true``: it would come back rounded."""
    pairs = zip(_tensors(average), _tensors(module), strict=False)
    kept = [(theirs, theirs.detach().clone()) for theirs, ours in pairs if theirs.dtype != ours.dtype]
    try:
        yield
    finally:
        with torch.no_grad():
            for theirs, copy in kept:
                theirs.copy_(copy)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
