"""Mean squared error for classification."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nc_finetune.losses.base import ClassificationLoss, true_class


class RescaledMSELoss(ClassificationLoss):
    """Squared error of the logits z from ``target`` at the true class and 0 elsewhere.

    ``1/K (alpha (z_y - target)^2 + sum_{k != y} z_k^2)``, in ``[0, inf)``. ``alpha = target = 1`` is
    ``torch.nn.MSELoss`` on one-hot labels; with many classes a larger alpha or target keeps the one true class from
    being drowned by the K - 1 others.

    Args:
        alpha: Weight of the true class, positive; e.g. 5, with a target of 1.
        target: Its logit, positive; e.g. 5, with an alpha of 1.
        weight: Class weights; see :class:`~nc_finetune.losses.ClassificationLoss`.

    Raises:
        ValueError: If alpha or the target are not positive, or the weights cannot weigh.

    Source:
        Hui & Belkin 2020, Evaluation of neural architectures trained with square loss vs cross-entropy in
        classification tasks, arXiv:2006.07322; its collapse: Zhou et al. 2022, On the optimization landscape of neural
        collapse under MSE loss, arXiv:2203.01238.

    Example:
        >>> RescaledMSELoss(alpha=5, target=2)(torch.tensor([[1.0, 3.0]]), torch.tensor([0])).item()  # (5 + 9) / 2
        7.0
    """

    def __init__(self, alpha: float = 1.0, target: float = 1.0, weight: Sequence[float] | Tensor | None = None) -> None:
        super().__init__(weight)
        if not (0 < alpha < math.inf and 0 < target < math.inf):
            raise ValueError(f"alpha and target must be positive, finite numbers, got {alpha} and {target}")
        self.alpha = alpha
        self.target = target

    def sample_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over classes of the squared errors, alpha times that of the true class."""
        is_true = torch.nn.functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
        others = ((1 - is_true) * logits).square().sum(dim=1)
        return (self.alpha * (true_class(logits, labels) - self.target).square() + others) / logits.shape[1]
