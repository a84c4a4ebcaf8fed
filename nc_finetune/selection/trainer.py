"""Trainers of fits among many, which write nothing and say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L


class StopAfter(L.Callback):
    """End a fit after some of its epochs, its rates going the way that they go in the whole of it.

    It stands before callbacks that do something in the last epoch.

    Args:
        epochs: How many, at least 1.

    Raises:
        ValueError: If it is below 1.

    Example:
        >>> StopAfter(3).epochs
        3
    """

    def __init__(self, epochs: int) -> None:
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let this epoch be the last one."""
        if trainer.current_epoch + 1 >= self.epochs:
            trainer.should_stop = True


def quiet_trainer(epochs: int, callbacks: Sequence[L.Callback], **options: Any) -> L.Trainer:
    """Return a trainer of one device without logs, checkpoints and progress.

    Args:
        epochs: Passes over the training images, along which learning rates go.
        callbacks: In their order.
        **options: Further ones of the trainer.
    """
    return L.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
