"""The mean of what batches give, each with its weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class WeightedMean(Metric):
    """``sum_b w_b x_b / sum_b w_b`` over batches and processes; ``nan`` where nothing weighs, or a value is ``nan``.

    torchmetrics' ``MeanMetric`` either waits for the device at each update, to look for ``nan``, or takes no weights.

    Example:
        >>> metric = WeightedMean()
        >>> metric.update(torch.tensor(1.0), torch.tensor(3.0))
        >>> metric.update(torch.tensor(5.0), torch.tensor(1.0))
        >>> metric.compute()
        tensor(2.)
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("total", "weight"):
            self.add_state(name, default=torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor) -> None:
        """Add a batch.

        Args:
            value: Its mean, a scalar.
            weight: What it counts, a scalar of at least 0.
        """
        self.total = self.total + value.detach().to(self.total.dtype) * weight
        self.weight = self.weight + weight

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.total / self.weight
