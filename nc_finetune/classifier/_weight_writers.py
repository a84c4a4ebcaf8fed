"""What in a trainer of Lightning writes weights by itself: told what is frozen, or refused."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BaseFinetuning, ModelPruning, StochasticWeightAveraging
from lightning.pytorch.plugins import BitsandbytesPrecision, TorchSyncBatchNorm, TransformerEnginePrecision
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nc_finetune._common.lightning_internals import averages, pruned_parameters, replace_layer_sync
from nc_finetune.backbones import batch_norms, restore_classes, synchronize


def refuse_writers(trainer: L.Trainer, model: Any) -> None:
    """Refuse callbacks and plugins that would change frozen weights, or thaw them, before any of it has run.

    Raises:
        ValueError: With the way out.
    """
    label = model.method.label
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = type(callback).__name__
        if isinstance(callback, BaseFinetuning):
            raise ValueError(
                f"{name} freezes and thaws the backbone by rules of its own, and {label} decides that here; leave it"
                " out, and tune the head first by method=ProbeFirst(FullFinetuning(), probe_epochs=...)"
            )
        if isinstance(callback, ModelPruning) and (frozen := _pruned_frozen_weight(callback, model)):
            raise ValueError(
                f"{name} would prune {frozen}, which {label} leaves frozen; give it"
                " parameters_to_prune of what is tuned"
            )
    plugin = trainer.precision_plugin
    if isinstance(plugin, (BitsandbytesPrecision, TransformerEnginePrecision)):
        raise ValueError(
            f"{type(plugin).__name__} puts other layers, with rounded weights, in place of frozen ones; use"
            " precision='bf16-mixed'"
        )


def average_switches(callbacks: Iterable[Any]) -> None:
    """Let averages of the weights take over buffers that are no numbers, once callbacks are set up.

    torch's equal average fails at a boolean one.
    """
    for average in averages(callbacks):
        if isinstance(average, AveragedModel) and average.avg_fn is None and average.multi_avg_fn is None:
            average.avg_fn = _mean_of_numbers


def tell_unfinished_averages(trainer: L.Trainer) -> None:
    """Say where a fit has ended before ``StochasticWeightAveraging`` put its average in place.

    Warns:
        UserWarning: If there is such a callback.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging) and trainer.current_epoch - 1 < callback.swa_end < math.inf:
            warnings.warn(
                f"StochasticWeightAveraging takes its average after epoch {callback.swa_end}, and the fit has ended"
                f" after epoch {trainer.current_epoch - 1}: the weights are the last ones; beside EarlyStopping take"
                " nc_finetune.callbacks.AverageEpochs or EMAWeightAveraging",
                stacklevel=2,
            )


def _mean_of_numbers(average: Tensor, value: Tensor, number: Tensor | int) -> Tensor:
    return average + (value - average) / (number + 1) if average.dtype != torch.bool else value


def _pruned_frozen_weight(callback: Any, model: Any) -> str | None:
    chosen = pruned_parameters(callback)
    if not chosen:
        return "all layers"
    tuned = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    names = {id(part): name for name, part in model.named_modules()}
    for part, name in chosen:
        parameter = getattr(part, f"{name}_orig", getattr(part, name, None))
        if parameter is not None and id(parameter) not in tuned:
            return f"{names.get(id(part), type(part).__name__)}.{name}"
    return None


def keep_frozen_norms(strategy: Any, model: Any) -> None:
    """Let ``sync_batchnorm=True`` synchronise what is tuned alone, and without loss of timm's activations."""
    replace_layer_sync(strategy, TorchSyncBatchNorm, TunedSyncBatchNorm(model))


class TunedSyncBatchNorm(LayerSync):
    """Synchronise the BatchNorm layers of what is tuned over all processes; see :func:`keep_frozen_norms`."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._before: list[tuple[nn.Module, type[nn.Module]]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Convert them in place, but for those that keep to their statistics anyway."""
        method = self.model.method
        learns = getattr(method, "method", method).batch_norm == "train"  # of a method in two phases, the second
        tuned = method.tuned_modules(self.model.backbone) if learns else []
        parts = (*tuned, self.model.head, self.model.loss)
        self._before += synchronize(dict.fromkeys(norm for part in parts for norm in batch_norms(part)))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Convert them back."""
        restore_classes(self._before)
        self._before = []
        return model
