"""Cross-entropy of samples that have several labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from nc_finetune.losses.base import check_weight, full_precision, weight_buffer


class PickAllLabelsLoss(nn.Module):
    """Sum of the cross-entropies of all of a sample's labels, ``- sum_{k in S} w_k log p_k``, in ``[0, inf)``.

    The mean over samples. A sample of one label has its cross-entropy, one without labels a loss of 0.

    Args:
        average: Take the mean over a sample's labels, not the sum: samples of many labels then count no more than
            others.
        weight: Class weights w, K of them, at least 0; unlike those of the other losses they do not divide the mean,
            as in ``torch.nn.CrossEntropyLoss`` on class probabilities.

    Raises:
        ValueError: If a weight is negative or not finite, or all are zero.

    Source:
        Li et al. 2023, Neural collapse in multi-label learning with pick-all-label loss, arXiv:2310.15903.

    Example:
        >>> import torch
        >>> loss = PickAllLabelsLoss()
        >>> round(loss(torch.zeros(1, 4), torch.tensor([[1, 0, 1, 0]])).item(), 4)  # 2 log 4
        2.7726
    """

    # Says that targets have shape (N, K); ImageClassifier then measures what suits them.
    multilabel: ClassVar[bool] = True
    weight: Tensor | None

    def __init__(self, average: bool = False, weight: Sequence[float] | Tensor | None = None) -> None:
        super().__init__()
        self.average = average
        self.register_buffer("weight", weight_buffer(weight))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            logits: Shape ``(N, K)``, floating point.
            labels: Shape ``(N, K)``, 0 or 1, of any dtype.

        Raises:
            ValueError: If the shapes do not fit, or labels that lie on the CPU are neither 0 nor 1.
        """
        self._check(logits, labels)
        logits = full_precision(logits)
        targets = labels.to(logits.dtype)
        if self.average:
            targets = targets / targets.sum(dim=1, keepdim=True).clamp_min(1)
        weight = None if self.weight is None else self.weight.to(logits.dtype)
        return F.cross_entropy(logits, targets, weight=weight)

    def _check(self, logits: Tensor, labels: Tensor) -> None:
        if logits.ndim != 2 or labels.shape != logits.shape:
            raise ValueError(
                "logits and labels must both have shape (N, K), labels 0 or 1 for each class,"
                f" got {tuple(logits.shape)} and {tuple(labels.shape)}"
            )
        check_weight(self.weight, logits)
        if labels.device.type == "cpu" and not ((labels == 0) | (labels == 1)).all():
            raise ValueError(f"labels must be 0 or 1, got values from {labels.min().item()} to {labels.max().item()}")

    def extra_repr(self) -> str:
        """Show whether labels are averaged."""
        return f"average={self.average}"
