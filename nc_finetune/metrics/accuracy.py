"""Accuracy, which a network that diverged has none of."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from nc_finetune.metrics._finite_predictions import FinitePredictions


class Accuracy(FinitePredictions, MulticlassAccuracy):
    """Share of the samples that are recognised, in ``[0, 1]``.

    Args:
        num_classes: K.

    Example:
        >>> accuracy = Accuracy(2)
        >>> accuracy(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
        tensor(0.5000)
    """

    title = "accuracy"

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="micro", validate_args=False)

    def compute(self) -> Tensor:
        """Return the value, a scalar; ``nan``, with a warning, without samples and where predictions are not finite."""
        return torch.full((), torch.nan, device=self.samples.device) if self._is_undefined() else super().compute()
