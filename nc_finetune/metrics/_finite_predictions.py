"""What the metrics of classifiers share: labels of any integer dtype, and predictions that must be finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric

from nc_finetune.functional.undefined import warn_undefined
from nc_finetune.metrics.targets import check_targets

if TYPE_CHECKING:
    _Base = Metric
else:
    _Base = object


class FinitePredictions(_Base):
    """Mixed into a metric: ``nan``, with a warning, for no samples and for predictions that are not finite.

    Without it ``argmax`` turns logits of a network that diverged into a class, and the share of that class into an
    accuracy. Minus infinity, which rules a class out, is a number here. ``update`` makes no device-to-host copy.
    """

    title: str
    num_classes: int | None
    undecided: Tensor
    samples: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_state("undecided", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("samples", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            preds: Scores, shape ``(N, K)``, or for one label a sample classes, ``(N,)``.
            target: Shape ``(N,)``, integers in ``[0, K)``; for several labels ``(N, K)``, 0 or 1, of any dtype.

        Raises:
            ValueError: If labels are none, or out of range.
        """
        super().update(preds, self._checked(preds, target))  # type: ignore[safe-super]
        self._count(preds)

    def _checked(self, preds: Tensor, target: Tensor) -> Tensor:
        """Return the labels as integers, or refuse them."""
        return check_targets(target, len(preds), self.num_classes or 1)

    def _count(self, preds: Tensor) -> None:
        """Count the samples of a batch, and those without a decision."""
        self.samples = self.samples + len(preds)
        if preds.is_floating_point():
            decided = (preds < float("inf")).flatten(1).all(dim=1) if preds.ndim > 1 else preds < float("inf")
            self.undecided = self.undecided + (~decided).sum()  # nan is not below it either

    def _is_undefined(self) -> bool:
        """Tell whether there is a value; if not, warn once and say why."""
        if not self.samples:
            warn_undefined(self.title, "there are no samples")
        elif self.undecided:
            warn_undefined(self.title, f"predictions of {int(self.undecided)} of {int(self.samples)} are not finite")
        return bool(not self.samples or self.undecided)
