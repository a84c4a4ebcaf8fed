"""What a run of a benchmark notes while it trains and tests."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import ConfusionMatrix

from nc_finetune.callbacks import ReadoutSolver, SolveHead
from nc_finetune.classifier import ImageClassifier
from nc_finetune.files.delta import tuned_state
from nc_finetune.methods import LayerReadout


class EpochTimer(L.Callback):
    """Time of each training pass, from its start to its last step; validation comes after that."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start: float | None = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it after the last step."""
        if trainer.is_last_batch:
            self._stop()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop it where an epoch had no steps, since the head was solved."""
        self._stop()

    def _stop(self) -> None:
        if self._start is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._start)
        self._start = None


class HeadWatcher(L.Callback):
    """Base of those that look at the logits as they come, at no cost but their own arithmetic."""

    def _watch(self, pl_module: L.LightningModule) -> None:
        head = pl_module.get_submodule("head")
        self._handle = head.register_forward_hook(self._take)

    def _take(self, _head: nn.Module, _inputs: Any, logits: Tensor) -> None:
        self._logits = logits.detach()


class LearningCurve(HeadWatcher):
    """Mean loss, and accuracy in per cent, of each training epoch, as the batches went by.

    Args:
        multi_label: Whether images have several labels; there is no accuracy then.
    """

    def __init__(self, multi_label: bool = False) -> None:
        self._multi_label = multi_label
        self._sums: list[Tensor] = []

    @property
    def values(self) -> dict[str, list[float]]:
        """``train_loss`` and, of images with one label, ``train_accuracy`` by epoch; none of an epoch without steps."""
        sums = [(loss, correct, number) for loss, correct, number in map(Tensor.tolist, self._sums) if number]
        losses = {"train_loss": [loss / number for loss, _, number in sums]}
        if self._multi_label:
            return losses
        return {**losses, "train_accuracy": [100 * correct / number for _, correct, number in sums]}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a new epoch."""
        self._watch(pl_module)
        self._sums.append(torch.zeros(3, dtype=torch.float64, device=pl_module.device))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a batch, on the device: nobody waits for it."""
        labels = batch[1].argmax(1) if self._multi_label else batch[1]
        correct = (self._logits.argmax(1) == labels).sum()
        number = torch.as_tensor(len(labels), device=correct.device)
        self._sums[-1] += torch.stack([outputs["loss"].detach() * number, correct, number])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the head alone."""
        self._handle.remove()


class TestConfusion(HeadWatcher):
    """Confusion matrix of the test split, true classes downwards."""

    __test__ = False  # pytest would take it for a test

    def __init__(self, num_classes: int) -> None:
        self._matrix = ConfusionMatrix(task="multiclass", num_classes=num_classes, validate_args=False)

    @property
    def rows(self) -> list[str]:
        """One text a true class, ``"<predicted>:<count> ..."``."""
        matrix = self._matrix.compute().tolist()
        return [" ".join(f"{label}:{count}" for label, count in enumerate(row) if count) for row in matrix]

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start from nothing."""
        self._watch(pl_module)
        self._matrix = self._matrix.to(pl_module.device)
        self._matrix.reset()

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        self._matrix.update(self._logits, batch[1])

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the head alone."""
        self._handle.remove()


def solved_head(trainer: L.Trainer, model: ImageClassifier) -> dict[str, Any]:
    """Return how the head was solved, as a result says it; nothing where it was not."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    found = [part for part in callbacks if isinstance(part, (ReadoutSolver, SolveHead)) and part.solved is not None]
    if not found or (solved := found[-1].solved) is None:  # what was solved last is the head
        return {}
    layers = {"layers": model.method.layers} if isinstance(model.method, LayerReadout) else {}
    return {
        **layers,
        **solved.settings,
        f"{solved.left_out}_accuracy": 100 * solved.accuracy,
        **(_choice_of_layers(found[-1]) if isinstance(found[-1], ReadoutSolver) else _choice_of_heads(found[-1])),
    }


def _choice_of_layers(solver: ReadoutSolver) -> dict[str, Any]:
    tried = {} if solver.choice is None else solver.choice.accuracies
    return {"by_layers": {name: 100 * value for name, value in tried.items()}} if tried else {}


def _choice_of_heads(solver: SolveHead) -> dict[str, Any]:
    tried = {name: 100 * score.accuracy for name, score in solver.scores.items()}
    return {"taken": solver.taken, **({"by_heads": tried} if tried else {})}


def delta_size(model: ImageClassifier) -> int:
    """Return the bytes of what was tuned: parameters, their buffers, and the head."""
    return sum(value.numel() * value.element_size() for value in tuned_state(model).values())
