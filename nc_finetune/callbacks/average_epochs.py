"""Weights averaged over the last epochs of a fit, and what other averages of Lightning are told."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch import callbacks
from torch.optim.swa_utils import AveragedModel

from nc_finetune._common.lightning_internals import averages

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import WeightAveraging
else:  # not in every version of Lightning
    WeightAveraging = getattr(callbacks, "WeightAveraging", L.Callback)


class AverageEpochs(WeightAveraging):
    """Average the weights over the last epochs, and validate, save and keep the average.

    A ``WeightAveraging`` of Lightning, with one average that needs no number of steps: each epoch from ``start`` on
    counts the same, and is in the average before that is validated, so that what is monitored, saved and left in the
    end is what was measured. Before ``start`` the average is the model itself. The rates fall as ever; training goes on
    with the weights that it would have without this callback. Statistics of BatchNorm are averaged where they learn,
    and what is frozen stays bit-identical.

    Args:
        start: Share of the fit after which epochs count, in ``[0, 1)``: at 0.5 those of its later half.

    Raises:
        ValueError: If ``start`` is out of range, or at the start of a fit without an end, which has no half.
        RuntimeError: If Lightning is older than 2.6, which averages no weights.

    Source:
        Izmailov et al. 2018, arXiv:1803.05407, there at a constant or cyclical rate.

    Example:
        >>> AverageEpochs(0.75).start
        0.75
    """

    def __init__(self, start: float = 0.5) -> None:
        if WeightAveraging is L.Callback:
            raise RuntimeError("AverageEpochs needs WeightAveraging of lightning 2.6 or newer; install that")
        if not 0 <= start < 1:
            raise ValueError(f"start must be a share of the fit in [0, 1), got {start}")
        super().__init__()
        self.start = start
        self._first = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the step after which epochs count."""
        if trainer.optimizers and trainer.estimated_stepping_batches == float("inf"):
            raise ValueError(
                "AverageEpochs counts epochs from a share of the fit on, and the fit has no end; give max_epochs or"
                " max_steps"
            )
        self._first = self.start * trainer.estimated_stepping_batches if trainer.optimizers else 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the weights at the end of an epoch, before they are validated."""
        at_end = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        if at_end and trainer.global_step > self._first:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate the average, and before there is one the model."""
        self._follow(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average, and before there is one the model."""
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the average, or the model where the fit has ended before there was one."""
        self._follow(pl_module)
        super().on_train_end(trainer, pl_module)

    def _follow(self, model: L.LightningModule) -> None:
        for average in averages([self]):
            if isinstance(average, AveragedModel) and not average.n_averaged:
                average.update_parameters(model)
                average.n_averaged.zero_()


def catch_up(model: Any) -> None:
    """Let averages of the weights be the model as it is now, with its head and its method.

    Args:
        model: An :class:`~nc_finetune.ImageClassifier` in its trainer.
    """
    for average in averages(model.trainer.callbacks):
        copied: Any = getattr(average, "module", average)
        device = next(copied.parameters()).device
        copied.method, copied.head = (copy.deepcopy(part).to(device) for part in (model.method, model.head))
        copied.doubt = None if model.doubt is None else copy.deepcopy(model.doubt).to(device)
        copied.load_state_dict(model.state_dict())
