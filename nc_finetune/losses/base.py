"""What losses share: checks, class weights, and the mean over samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def full_precision(logits: Tensor) -> Tensor:
    """Return logits in float32 at least: sums over classes and samples lose too much in half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def weight_buffer(weight: Sequence[float] | Tensor | None) -> Tensor | None:
    """Return class weights as a tensor, or refuse what cannot weigh.

    Raises:
        ValueError: If they are not one number a class, finite, none negative, not all zero.
    """
    if weight is None:
        return None
    values = torch.as_tensor(weight, dtype=torch.get_default_dtype()).detach().clone()
    if values.ndim != 1 or not values.isfinite().all() or values.lt(0).any() or not values.any():
        raise ValueError(
            f"weight must hold one finite number of at least 0 for each class, some above 0, got {values.tolist()}"
        )
    return values


def check_weight(weight: Tensor | None, logits: Tensor) -> None:
    """Refuse class weights of another number of classes.

    Raises:
        ValueError: If their number is not that of the logits.
    """
    if weight is not None and len(weight) != logits.shape[1]:
        raise ValueError(f"weight has {len(weight)} classes, the logits have {logits.shape[1]}")


class ClassificationLoss(nn.Module, ABC):
    """Base of the losses on logits ``(N, K)`` and labels ``(N,)``.

    The mean over samples, weighted like that of ``torch.nn.CrossEntropyLoss``: ``sum_i w_{y_i} l_i / sum_i w_{y_i}``.
    Half precision is summed in float32.

    Args:
        weight: Class weights, K of them, at least 0; see :func:`~nc_finetune.losses.class_weights`. ``None`` weighs
            all the same.

    Raises:
        ValueError: If a weight is negative or not finite, or all are zero.
    """

    weight: Tensor | None

    def __init__(self, weight: Sequence[float] | Tensor | None = None) -> None:
        super().__init__()
        # Like torch, which keeps the weights of a loss in its state.
        self.register_buffer("weight", weight_buffer(weight))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar; ``nan`` for an empty batch.

        Args:
            logits: Shape ``(N, K)``, floating point.
            labels: Shape ``(N,)``, integers in ``[0, K)``.

        Raises:
            ValueError: If the shapes do not fit, or labels that lie on the CPU are out of range.
        """
        self._check(logits, labels)
        losses = self.sample_losses(full_precision(logits), labels.long())
        if self.weight is None:
            return losses.mean()
        weights = self.weight.to(losses.dtype)[labels.long()]
        return (weights * losses).sum() / weights.sum()

    @abstractmethod
    def sample_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each sample, shape ``(N,)``."""

    def extra_repr(self) -> str:
        """Show the options, which are numbers."""
        options = ((name, value) for name, value in vars(self).items() if type(value) in (int, float))
        return ", ".join(f"{name}={value:g}" for name, value in options)

    def _check(self, logits: Tensor, labels: Tensor) -> None:
        if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.is_floating_point():
            raise ValueError(
                "logits must have shape (N, K) and labels be N integers, got shapes"
                f" {tuple(logits.shape)} and {tuple(labels.shape)}, labels of {labels.dtype}"
            )
        check_weight(self.weight, logits)
        # On an accelerator looking would wait for it; there, indexing itself fails.
        if labels.device.type == "cpu" and labels.numel() and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
            raise ValueError(
                f"labels must lie in [0, {logits.shape[1]}), got {int(labels.min())} to {int(labels.max())}"
            )


def true_class(values: Tensor, labels: Tensor) -> Tensor:
    """Pick each sample's entry of its own class, shape ``(N,)``."""
    return values.gather(1, labels.unsqueeze(1)).squeeze(1)
