"""Dot regression: the loss of a fixed classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from nc_finetune.losses.base import ClassificationLoss, true_class


class DotRegressionLoss(ClassificationLoss):
    """Pull each feature onto its class' row of a fixed frame: ``(z_y - alpha)^2 / (2 alpha)``, in ``[0, 2 alpha]``.

    For logits ``z = alpha cos(h, w_k)`` of a head whose features and rows have a fixed length, that is alpha/2
    ``(cos - 1)^2``: a :class:`~nc_finetune.heads.SimplexETFHead` with ``normalize=True``. No other class pushes, which
    keeps rare classes from being driven off by frequent ones; the frame alone keeps classes apart. With a trained
    classifier, or features of free length, it teaches nothing: do not use it there.

    Args:
        alpha: The head's ``alpha``, where both must be given: 1 is the paper's with lengths of 1.
        weight: Class weights; see :class:`~nc_finetune.losses.ClassificationLoss`.

    Raises:
        ValueError: If alpha is not positive, or the weights cannot weigh.

    Source:
        Yang et al. 2022, Inducing neural collapse in imbalanced learning: do we really need a learnable classifier at
        the end of deep neural network?, arXiv:2203.09081, with ``alpha = sqrt(E_W E_H)``.

    Example:
        >>> import torch
        >>> from nc_finetune.heads import SimplexETFHead
        >>> head = SimplexETFHead(4, 3, alpha=1.0)
        >>> round(DotRegressionLoss()(head(-head.weight), torch.arange(3)).item(), 4)  # cos = -1
        2.0
    """

    def __init__(self, alpha: float = 1.0, weight: Sequence[float] | Tensor | None = None) -> None:
        super().__init__(weight)
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be a positive, finite number, that of the head, got {alpha}")
        self.alpha = alpha

    def sample_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return ``(z_y - alpha)^2 / (2 alpha)``."""
        return (true_class(logits, labels) - self.alpha).square() / (2 * self.alpha)
