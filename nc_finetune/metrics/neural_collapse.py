"""The neural-collapse measures as one torchmetrics metric over one shared state."""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor
from torchmetrics import Metric

from nc_finetune.errors import unknown_name
from nc_finetune.functional.class_statistics import (
    ClassStatistics,
    empty_class_statistics,
    merge_class_statistics,
    update_class_statistics,
)
from nc_finetune.functional.variability import Between, Normalize, nc1_from_statistics


class NeuralCollapse(Metric):
    """Measure how far features have collapsed to their class means, exactly, in one pass over the data.

    The state is the class counts ``(K,)``, class means ``(K, D)`` and within-class scatter ``(D, D)`` in float64,
    8 (K + K D + D^2) bytes, however many samples are seen. ``update`` makes no device-to-host copy.

    Args:
        num_classes: K, at least 2.
        num_features: D, the width of the features, at least 1.
        normalize: ``"none"`` for ``tr(Sigma_W Sigma_B^+)``, ``"classes"`` to divide it by K.
        between: Weights of the class means in ``Sigma_B``; see :func:`nc_finetune.functional.nc1`.
        kwargs: Further arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_classes``, ``num_features`` or a convention is out of range, or if features do not have
            shape ``(N, D)``.

    Source:
        Papyan, Han & Donoho 2020, Prevalence of neural collapse, 10.1073/pnas.2015509117.

    Example:
        >>> import torch
        >>> metric = NeuralCollapse(num_classes=2, num_features=2)
        >>> metric.update(torch.tensor([[2.0, 0.0], [4.0, 0.0]]), torch.tensor([0, 0]))
        >>> metric.update(torch.tensor([[-2.0, 0.0], [-4.0, 0.0]]), torch.tensor([1, 1]))
        >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
        {'nc1': 0.1111}
    """

    is_differentiable = True
    higher_is_better = False
    full_state_update = False

    counts: Tensor
    means: Tensor
    scatter: Tensor

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        normalize: Normalize = "none",
        between: Between = "classes",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes < 2 or num_features < 1:
            raise ValueError(
                f"num_classes must be at least 2 and num_features at least 1, got {num_classes} and {num_features}"
            )
        for name, given, valid in (
            ("normalize", normalize, get_args(Normalize)),
            ("between", between, get_args(Between)),
        ):
            if given not in valid:
                raise unknown_name(name, given, valid)
        self.num_classes = num_classes
        self.num_features = num_features
        self.normalize: Normalize = normalize
        self.between: Between = between
        empty = empty_class_statistics(num_classes, num_features)
        # Means do not add up over ranks: gather the three sums of every rank and merge them in `compute`.
        for name, value in empty._asdict().items():
            self.add_state(name, default=value, dist_reduce_fx=None)

    def update(self, features: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            features: Shape ``(N, D)``, any floating dtype.
            target: Shape ``(N,)``, integers in ``[0, K)``.
        """
        if features.ndim != 2 or features.shape[1] != self.num_features or target.shape != features.shape[:1]:
            raise ValueError(
                f"features must have shape (N, {self.num_features}) and target (N,), got {tuple(features.shape)} and"
                f" {tuple(target.shape)}"
            )
        statistics = update_class_statistics(self._statistics(), features, target)
        self.counts, self.means, self.scatter = statistics

    def compute(self) -> dict[str, Tensor]:
        """Return ``{"nc1": scalar}``; ``nan``, with a warning that says why, where it is undefined."""
        return {"nc1": nc1_from_statistics(self._statistics(), self.normalize, self.between)}

    def _statistics(self) -> ClassStatistics:
        """Return the sums, over all ranks after torchmetrics has gathered them along a first dimension."""
        statistics = ClassStatistics(self.counts, self.means, self.scatter)
        if self.counts.ndim == 1:
            return statistics
        first, *others = (ClassStatistics(*sums) for sums in zip(*statistics, strict=True))
        for other in others:
            first = merge_class_statistics(first, other)
        return first

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        """Merge another state into this one: what torchmetrics calls in ``forward`` and ``merge_state``."""
        incoming = ClassStatistics(**{name: incoming_state[name] for name in ClassStatistics._fields})
        self.counts, self.means, self.scatter = merge_class_statistics(incoming, self._statistics())
