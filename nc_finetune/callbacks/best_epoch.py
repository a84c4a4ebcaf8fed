"""The best epoch of a fit in place of the last."""

from __future__ import annotations

import os
import warnings
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from nc_finetune.callbacks.average_epochs import catch_up
from nc_finetune.callbacks.delta_checkpoint import DeltaCheckpoint
from nc_finetune.files.delta import apply_delta, read_delta

_BEST_AT: dict[str, Literal["min", "max"]] = {"loss": "min", "nc1": "min", "accuracy": "max", "precision": "max"}


class BestEpoch(DeltaCheckpoint):
    """Keep the best epoch of a fit, and put it back at the end: in memory, in the file and in tests it is the model.

    A :class:`DeltaCheckpoint` that monitors a metric: the delta of the best epoch is there at any time, also where the
    fit is cut off, and ``trainer.test(ckpt_path="best")`` finds it. At the end, after ``EarlyStopping`` too, what was
    tuned takes the values that it had then, on every process. Frozen parts are not touched. Where weights are averaged,
    the best average as it was validated is taken; :class:`SolveHead` solves its head on the best epoch.

    A fit that goes on from a checkpoint, such as :class:`ResumableRun` writes, goes on comparing with the best epoch
    before, whose delta has to be where it was.

    The epoch is chosen by the validation images, which therefore flatter it: judge it by others.

    Args:
        monitor: Logged metric.
        mode: Whether it is best at its ``"min"`` or ``"max"``; ``None`` knows for losses and NC1, accuracies and
            precisions. Of equal epochs the first counts.
        in_memory: Put the best epoch back at the end; ``False`` leaves the last in memory, and the best in the file.
        dirpath: Folder of the delta; ``None`` is where Lightning puts checkpoints.
        filename: Of the delta, as for :class:`DeltaCheckpoint`.
        options: Others of :class:`DeltaCheckpoint`.

    Raises:
        ValueError: If ``mode`` is missing for another metric; at the start of a fit, if the metric is one of validation
            and there are no validation images, or as for :class:`DeltaCheckpoint`.

    Warns:
        UserWarning: If the delta of the best epoch before is gone, when the fit goes on or ends.

    Attributes:
        best_epoch: Number of the epoch, from 0; ``None`` before.

    Example:
        >>> BestEpoch("val/accuracy").mode
        'max'
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] | None = None,
        *,
        in_memory: bool = True,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        **options: Any,
    ) -> None:
        known = next((best for word, best in _BEST_AT.items() if word in monitor.lower()), None)
        if (found := mode or known) is None:
            raise ValueError(f"whether {monitor!r} is best at its minimum or maximum is not known; give mode")
        super().__init__(dirpath, filename, monitor=monitor, mode=found, **options)
        self.in_memory = in_memory
        self.best_epoch: int | None = None
        self._ended = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin anew, until a checkpoint tells of epochs before."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._ended = False
            self._forget()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look whether there will be validation, and whether the best epoch before is still there."""
        super().on_train_start(trainer, pl_module)
        if str(self.monitor).startswith("val/") and not any(trainer.num_val_batches):
            raise ValueError(
                f"BestEpoch chooses by {self.monitor!r}, and there are no validation images; hold some out (val_size),"
                " or leave it out"
            )
        self._is_there(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the best epoch back; once, should somebody need it before it is this callback's turn."""
        if self._ended:
            return
        self._ended = True
        super().on_train_end(trainer, pl_module)
        self._put_back(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do so, too, where a checkpoint was of a fit that is at its end."""
        if not self._ended and trainer.ckpt_path is not None:
            self._put_back(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return what a fit goes on with."""
        return {**super().state_dict(), "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it."""
        super().load_state_dict(state_dict)
        self.best_epoch = state_dict.get("best_epoch")

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        if filepath == self.best_model_path:
            self.best_epoch = trainer.current_epoch
        super()._save_checkpoint(trainer, filepath)

    def _forget(self) -> None:
        self.best_epoch = self.best_model_score = self.current_score = None
        self.best_k_models, self.best_model_path, self.kth_best_model_path = {}, "", ""
        self.kth_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)

    def _is_there(self, trainer: L.Trainer) -> bool:
        """Tell whether there is a best epoch; forget one whose file is gone."""
        if self.best_model_path and not self.file_exists(self.best_model_path, trainer):
            if trainer.is_global_zero:
                warnings.warn(
                    f"BestEpoch: {self.best_model_path}, of the best epoch before, is gone: only epochs since then are"
                    " compared",
                    stacklevel=3,
                )
            self._forget()
        return bool(self.best_model_path)

    def _put_back(self, trainer: L.Trainer, model: Any) -> None:
        if not self.in_memory or not self._is_there(trainer):
            return
        delta: Any = read_delta(self.best_model_path) if trainer.is_global_zero else None
        apply_delta(trainer.strategy.broadcast(delta), model)  # other machines may not see the file
        catch_up(model)
        score = "" if self.best_model_score is None else f", {self.monitor} {float(self.best_model_score):.4g}"
        rank_zero_info(f"BestEpoch: the model is that of epoch {self.best_epoch} (from 0){score}")
