"""Focal loss of several classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nc_finetune.losses.base import ClassificationLoss, true_class


class FocalLoss(ClassificationLoss):
    """Cross-entropy that looks away from what is easy: ``-(1 - p_y)^gamma log p_y``, p the softmax of the logits.

    In ``[0, inf)``. ``gamma = 0`` is cross-entropy, also with class weights, which ``torch.nn.CrossEntropyLoss`` does
    not take from a recipe. (torchvision's ``sigmoid_focal_loss`` is that of independent binary labels.)

    Args:
        gamma: At least 0; 2 is that of the paper.
        weight: Class weights; see :class:`~nc_finetune.losses.ClassificationLoss`.

    Raises:
        ValueError: If gamma is negative or not finite, or the weights cannot weigh.

    Source:
        Lin et al. 2017, Focal loss for dense object detection, arXiv:1708.02002; its collapse: Zhou et al. 2022, Are
        all losses created equal: a neural collapse perspective, arXiv:2210.02192.

    Example:
        >>> round(FocalLoss(gamma=2)(torch.zeros(1, 2), torch.tensor([0])).item(), 4)  # 0.5^2 log 2
        0.1733
    """

    def __init__(self, gamma: float = 2.0, weight: Sequence[float] | Tensor | None = None) -> None:
        super().__init__(weight)
        if not 0 <= gamma < math.inf:
            raise ValueError(f"gamma must be a finite number of at least 0, got {gamma}")
        self.gamma = gamma

    def sample_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return ``-(1 - p_y)^gamma log p_y``."""
        log_p = true_class(torch.log_softmax(logits, dim=1), labels)
        if self.gamma == 0:
            return -log_p
        # Not 1 - exp: it cancels. Not 0: the power's gradient is infinite there for gamma below 1.
        rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        return -(rest**self.gamma) * log_p
