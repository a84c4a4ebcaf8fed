"""The collapse measures of one layer while batches go through a network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from nc_finetune.functional import closest_pairs, empty_class_statistics
from nc_finetune.functional.measures import MEASURES
from nc_finetune.metrics import NeuralCollapse

CLOSEST_PAIRS = 5  # of a layer: of 1,000 classes there are 499,500
MakeMetric = Callable[[int, bool], NeuralCollapse]


def max_kept_samples(width: int) -> int:
    """Say of how many samples features are kept: in float32, as many as take the memory of a scatter.

    Looking at them again is cheaper than a scatter, which costs ``D^2`` multiplications a sample.
    """
    return 2 * width


class LayerSums:
    """The metric of one layer, made when its width is known, and why it cannot be had.

    NC1 and NC4 need the class means before they can look at the samples. Of few samples the features are kept; of more,
    a scatter; where that does not help, as for NC4, or there is none for so wide features, every sample must go through
    the network again.

    Args:
        measures: What to measure.
        make: Builds the metric from the width of the features and whether it is to have a scatter.
    """

    def __init__(self, measures: tuple[str, ...], make: MakeMetric) -> None:
        self.measures = measures
        self.make = make
        self.metric: NeuralCollapse | None = None
        self.problem: str | None = None
        self.error: Exception | None = None
        self.taken = False
        self.second_pass = False
        self._kept: list[tuple[Tensor, Tensor]] | None = None
        self._first_not_finite: Tensor | None = None

    def add(self, features: Tensor, labels: Tensor, batch: int) -> None:
        """Add what a batch gave, in the second pass once more."""
        metric = self.ensure_metric(features.shape[1], features.device)
        features, labels = features.to(metric.device), labels.to(metric.device)
        metric.update(features, labels)
        if not self.second_pass:
            self._note_not_finite(features, batch)
        if self._kept is not None:
            self._kept.append((features.clone(), labels))  # a view would hold the whole output, or change with it
            if sum(len(rows) for _, rows in self._kept) > max_kept_samples(metric.num_features):
                self.fold()

    def ensure_metric(self, width: int, device: torch.device) -> NeuralCollapse:
        """Return the metric, made for this width if there is none yet."""
        if self.metric is None:
            scatter = any(MEASURES[name].needs_scatter for name in self.measures)
            self.metric = self._make_metric(width, device_of_sums(device), scatter)
            narrow = empty_class_statistics(2, width, "meta").scatter is not None
            if self.metric.needs_second_pass and narrow:
                self._kept = []
        return self.metric

    @property
    def is_folded(self) -> bool:
        """Whether no features are kept."""
        return self.metric is not None and self._kept is None

    @property
    def needs_second_pass(self) -> bool:
        """Whether every sample must go through the network again."""
        return self.metric is not None and self._kept is None and self.metric.needs_second_pass

    def fold(self) -> None:
        """Let go of what was kept: put it into a scatter, which takes any number of samples, where that is enough."""
        if self._kept is not None and self.metric is not None and not self.metric.compares_means:
            self.metric = self._make_metric(self.metric.num_features, self.metric.device, True)
            for features, labels in self._kept:
                self.metric.update(features, labels)
        self._kept = None

    def begin_second_pass(self) -> None:
        """Fix the class means: every sample comes again."""
        self.second_pass = True
        try:
            if self.metric is not None:
                self.metric.begin_second_pass()
        except Exception as error:  # the same on all ranks: they look at the same sums
            self.fail(str(error), error)

    def fail(self, problem: str, error: Exception | None = None) -> None:
        """Give up; the first reason counts."""
        if self.problem is None:
            self.problem, self.error = problem, error

    def compute(self) -> dict[str, float]:
        """Return the measures over all ranks; ``nan`` where :attr:`problem` says why."""
        values: dict[str, float] = {}
        if self.problem is None and self.metric is not None:
            try:
                values = self._compute(self.metric)
            except Exception as error:  # the same on all ranks: they look at the same sums
                self.fail(str(error), error)
        scalars = [name for name in self.measures if not MEASURES[name].by_class]
        return {**dict.fromkeys(scalars, math.nan), **values}

    def _compute(self, metric: NeuralCollapse) -> dict[str, float]:
        if self._kept is not None:
            metric.begin_second_pass()
            for features, labels in self._kept:
                metric.update(features, labels)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = metric.compute()
            values = {key: number for name, value in found.items() for key, number in _numbers(name, value)}
        # torchmetrics also warns of a rank that had no samples, which is no problem here.
        if reasons := [str(w.message).rstrip(".") for w in caught if "undefined" in str(w.message)]:
            first = -1 if self._first_not_finite is None else int(self._first_not_finite)
            self.fail("; ".join(reasons) + (f" (first in batch {first})" if first >= 0 else ""))
        return values

    def _make_metric(self, width: int, device: torch.device, scatter: bool) -> NeuralCollapse:
        with torch.device(device):
            return self.make(width, scatter).to(device)

    def _note_not_finite(self, features: Tensor, batch: int) -> None:
        """Keep the first batch with features that are not finite, on the device: nobody waits for it."""
        number = torch.full((), batch, device=features.device)
        found = torch.where(features.isfinite().all(), torch.full_like(number, -1), number)
        first = self._first_not_finite
        self._first_not_finite = found if first is None else torch.where(first < 0, found, first)


def _numbers(name: str, value: Tensor) -> Iterator[tuple[str, float]]:
    """Name the numbers of a measure: by class, or by pair for the closest of them."""
    if not MEASURES[name].by_class:
        yield name, value.item()
    elif value.ndim == 1:
        yield from ((f"{name}/{label}", number) for label, number in enumerate(value.tolist()))
    else:
        yield from ((f"{name}/{k}|{other}", number) for k, other, number in closest_pairs(value, CLOSEST_PAIRS))


def device_of_sums(device: torch.device) -> torch.device:
    """Say where sums are kept for features on a device: they are in float64, which MPS does not have.

    Example:
        >>> device_of_sums(torch.device("mps"))
        device(type='cpu')
    """
    return torch.device("cpu") if device.type == "mps" else device
