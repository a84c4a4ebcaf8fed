"""Fit a linear probe by L-BFGS on features that are taken once, as a Lightning callback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from nc_finetune.backbones import PENULTIMATE
from nc_finetune.callbacks._solving import (
    end_solved_epoch,
    feature_batches,
    leave_nothing_to_train,
    training_loader,
    validation_loader,
)
from nc_finetune.functional.logistic_regression import LinearFit, logistic_path

DEFAULT_PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-12, 3))


class ProbePath(L.Callback):
    """Solve a linear or skip probe along a path of penalties, and keep what does best on the validation split.

    Before the first epoch, training and validation images go through the network once. The head is then fitted by
    L-BFGS for each penalty, on the device, and takes the weights with the highest validation accuracy, the stronger
    penalty of two that are equal; of several validation loaders the first decides. Nothing is left to train: the fit
    ends with one epoch that takes no step, for the sake of validation, checkpoints and measurements.
    ``trainer.validate`` and ``trainer.test`` show what it came to.
    Without this callback the head is trained by the optimizer as ever;
    :class:`~nc_finetune.callbacks.PrefixCache` then keeps the features.

    Args:
        l2: Penalties to try; see :func:`~nc_finetune.functional.logistic_regression.logistic_path`. ``None`` is 15
            from 1e-6 to 10, each the root of 10 times the one before.
        max_iterations: Iterations of L-BFGS for each penalty.

    Raises:
        ValueError: At the start of the fit, if the method tunes more than the head, or there are no validation data.
        TypeError: At the start of the fit, if the head is not one linear layer, or the loss not plain cross-entropy.

    Attributes:
        path: ``{"l2": ..., "train/loss": ..., "val/loss": ..., "val/accuracy": ...}`` for each penalty.
        chosen_l2: The penalty that was chosen.

    Source:
        Radford et al. 2021, arXiv:2103.00020, who choose the penalty of a probe on a validation split.

    Example:
        >>> ProbePath(l2=[1e-3, 1e-2]).path
        []
    """

    def __init__(self, l2: Sequence[float] | None = None, max_iterations: int = 200) -> None:
        self.l2 = tuple(DEFAULT_PENALTIES if l2 is None else l2)
        self.max_iterations = max_iterations
        self.chosen_l2: float | None = None
        self.path: list[dict[str, float]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Refuse what is no linear probe."""
        if not pl_module.method.trains:
            raise ValueError(
                f"ProbePath fits a head that is trained, and {pl_module.method.label} brings its own; leave it out"
            )
        if pl_module.method.first_tuned_layer(pl_module.backbone) != PENULTIMATE:
            raise ValueError(f"ProbePath fits the head alone, and {pl_module.method.label} tunes more; leave it out")
        if any(True for _ in pl_module.method.parameters()):
            raise ValueError(
                f"ProbePath fits the head alone, and {pl_module.method.label} learns something beside it: a block, or"
                " the scale of its skips; choose a fixed one"
            )
        if type(pl_module.head) is not nn.Linear or pl_module.head.bias is None:
            kind = type(pl_module.head).__name__
            raise TypeError(f"ProbePath fits one linear layer with a bias, and the head is a {kind}; leave it out")
        loss = pl_module.loss
        if type(loss) is not nn.CrossEntropyLoss or loss.label_smoothing or loss.weight is not None:
            raise TypeError("ProbePath minimises plain cross-entropy, and the loss is another; leave it out")

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Take the features, fit, and leave nothing to train."""
        loader, others = training_loader(trainer, pl_module, type(self).__name__), validation_loader(trainer)
        if others is None:
            raise ValueError("ProbePath chooses the penalty on a validation split, and there is none; give one")
        features, labels = _take_features(trainer, pl_module, loader)
        held_out = _take_features(trainer, pl_module, others)
        path = logistic_path(features, labels, pl_module.num_classes, self.l2, max_iterations=self.max_iterations)
        self.path = [_judge(fit, *held_out) for fit in path]
        best = max(range(len(path)), key=lambda place: self.path[place]["val/accuracy"])
        self.chosen_l2 = path[best].l2
        with torch.no_grad():
            pl_module.head.weight.copy_(path[best].weight)
            pl_module.head.bias.copy_(path[best].bias)
        leave_nothing_to_train(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Validate, since an epoch without batches does not, and end the fit."""
        end_solved_epoch(trainer)
        chosen = next(row for row in self.path if row["l2"] == self.chosen_l2)
        pl_module.log("train/loss", chosen["train/loss"], batch_size=1)

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Let other fits train."""
        pl_module.nothing_to_train = False


def _take_features(trainer: L.Trainer, pl_module: Any, loader: Any) -> tuple[Tensor, Tensor]:
    """Pass a split through the network; each process takes all of it."""
    features, labels = zip(*feature_batches(trainer, pl_module, loader), strict=True)
    # Made anew outside inference mode, so that they may enter a graph.
    return torch.cat(features).clone(), torch.cat(labels).clone()


def _judge(fit: LinearFit, features: Tensor, labels: Tensor) -> dict[str, float]:
    logits = features @ fit.weight.T + fit.bias
    loss = nn.functional.cross_entropy(logits, labels)
    accuracy = (logits.argmax(1) == labels).float().mean()
    return {"l2": fit.l2, "train/loss": fit.loss, "val/loss": float(loss), "val/accuracy": float(accuracy)}
