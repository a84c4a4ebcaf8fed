"""Progress as plain lines, where a bar would fill a log with control characters."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

from nc_finetune._common.terminal import duration, say

_MAIN = ("loss", "accuracy", "balanced_accuracy", "average_precision")


class ProgressLines(ProgressBar):
    """Say on standard error how far a run has come: a line an epoch, and one a minute in long ones.

    It takes the place of Lightning's progress bar. A line has the epoch, the loss and the main metrics, what was spent
    and about what is left.

    Args:
        every_seconds: Between two lines within an epoch.

    Raises:
        ValueError: If ``every_seconds`` is not above 0.

    Example:
        >>> ProgressLines().every_seconds
        60.0
    """

    def __init__(self, every_seconds: float = 60.0) -> None:
        if not every_seconds > 0:
            raise ValueError(f"every_seconds must be above 0, got {every_seconds}")
        super().__init__()
        self.every_seconds = every_seconds
        self._enabled = True
        self._start = self._last = 0.0
        self._first_epoch = 0

    def disable(self) -> None:
        """Say nothing: Lightning calls this on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Speak again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._begin()
        self._first_epoch = trainer.current_epoch

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Speak where an epoch is long."""
        self._count(f"{self._epoch(trainer)}", batch_idx, self.total_train_batches)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what an epoch came to."""
        done = trainer.current_epoch + 1 - self._first_epoch
        spent, left = time.monotonic() - self._start, ""
        if trainer.max_epochs is not None and trainer.max_epochs > 0 and trainer.max_steps < 0:
            left = f", about {duration(spent / done * (trainer.max_epochs - trainer.current_epoch - 1))} left"
        self._say(f"{self._epoch(trainer)}: {_main(trainer)}; {duration(spent)}{left}")

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Speak where a validation is long."""
        if not trainer.sanity_checking:
            self._evaluated("validation", trainer.num_val_batches, *args, **kwargs)

    def on_test_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Speak where a test is long."""
        self._evaluated("test", trainer.num_test_batches, *args, **kwargs)

    def on_predict_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Speak where there is much to predict."""
        self._evaluated("predict", trainer.num_predict_batches, *args, **kwargs)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, where nothing is trained."""
        if trainer.state.fn != "fit":
            self._begin()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._begin()

    on_predict_start = on_test_start

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that it is done."""
        self._say(f"predict: all batches; {duration(time.monotonic() - self._start)}")

    def _begin(self) -> None:
        self._start = self._last = time.monotonic()

    def _evaluated(
        self,
        stage: str,
        totals: Sequence[float] | float,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        total = totals if isinstance(totals, (int, float)) else totals[dataloader_idx]
        self._count(stage, batch_idx, total)

    def _count(self, stage: str, batch_idx: int, total: float) -> None:
        if time.monotonic() - self._last >= self.every_seconds:
            of = "" if math.isinf(total) else f" of {total}"
            self._say(f"{stage}: {batch_idx + 1}{of} batches; {duration(time.monotonic() - self._start)}")

    def _epoch(self, trainer: L.Trainer) -> str:
        of = f" of {trainer.max_epochs}" if trainer.max_epochs is not None and trainer.max_epochs > 0 else ""
        return f"epoch {trainer.current_epoch + 1}{of}"

    def _say(self, line: str) -> None:
        self._last = time.monotonic()
        if self._enabled:
            say(line)


def _main(trainer: L.Trainer) -> str:
    """Write what tells most of an epoch: losses and accuracies, or whatever a module shows on a progress bar."""
    known = {name: float(value) for name, value in trainer.callback_metrics.items() if name.split("/")[-1] in _MAIN}
    shown = known or {name: float(value) for name, value in trainer.progress_bar_metrics.items()}
    return ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
