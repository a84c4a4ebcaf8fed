"""Average precision over the tags that occur."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torchmetrics.classification import MultilabelAveragePrecision
from torchmetrics.functional.classification import multilabel_average_precision
from torchmetrics.utilities import dim_zero_cat

from nc_finetune.functional.undefined import named, warn_undefined
from nc_finetune.metrics._finite_predictions import FinitePredictions
from nc_finetune.metrics.targets import check_targets


class AveragePrecision(FinitePredictions, MultilabelAveragePrecision):
    """Mean over the tags that occur of how well their samples are ranked before the others, in ``[0, 1]``.

    A tag that no sample has ranks nothing: it is left out, with a warning that names it, where torchmetrics counts it
    as 0.

    Args:
        num_labels: K.

    Example:
        >>> precision = AveragePrecision(2)
        >>> precision(torch.tensor([[0.6, 0.4], [0.1, 0.9]]), torch.tensor([[1, 0], [1, 1]]))
        tensor(1.)
    """

    title = "average precision"

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, validate_args=False)

    def _checked(self, preds: Tensor, target: Tensor) -> Tensor:
        return check_targets(target, len(preds), self.num_labels, multilabel=True)

    def compute(self) -> Tensor:  # type: ignore[override]  # as in torchmetrics itself
        """Return the value, a scalar; ``nan``, with a warning, without a tag and where predictions are not finite."""
        undefined = torch.full((), torch.nan, device=self.samples.device)
        if self._is_undefined():
            return undefined
        preds, target = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        occurs = target.any(dim=0)
        if not occurs.any():
            warn_undefined(self.title, "no sample has a tag")
            return undefined
        if not occurs.all():
            warnings.warn(f"average precision leaves out tags that no sample has: {named(~occurs)}.", stacklevel=2)
        return multilabel_average_precision(
            preds[:, occurs], target[:, occurs], int(occurs.sum()), average="macro", validate_args=False
        )
