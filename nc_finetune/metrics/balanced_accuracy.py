"""Accuracy in which every class counts the same."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassStatScores

from nc_finetune.metrics._finite_predictions import FinitePredictions


class BalancedAccuracy(FinitePredictions, MulticlassStatScores):
    """Mean over the classes that occur of the share of their samples that are recognised, in ``[0, 1]``.

    scikit-learn's ``balanced_accuracy_score``. Where classes differ in size, plain accuracy is that of the large ones.

    Args:
        num_classes: K.

    Source:
        Brodersen et al. 2010, The balanced accuracy and its posterior distribution, 10.1109/ICPR.2010.764.

    Example:
        >>> accuracy = BalancedAccuracy(2)
        >>> accuracy.update(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]))
        >>> accuracy.compute()
        tensor(0.5000)
    """

    title = "balanced accuracy"

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes=num_classes, average="none", validate_args=False)

    def compute(self) -> Tensor:
        """Return the value, a scalar; ``nan``, with a warning, without samples and where predictions are not finite."""
        if self._is_undefined():
            return torch.full((), torch.nan, device=self.samples.device)
        scores = super().compute()
        hits, number = scores[:, 0].float(), scores[:, 4].float()
        shares = torch.where(number > 0, hits / number.clamp_min(1), torch.nan)
        return shares.nanmean()
