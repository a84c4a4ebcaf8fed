"""Features of a pass and their labels: kept while they are few, summed up with a sample of them where they are many."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from nc_finetune.functional.class_statistics import (
    MAX_SCATTER_FEATURES,
    ClassStatistics,
    empty_class_statistics,
    sum_class_statistics,
    update_class_statistics_,
)
from nc_finetune.functional.readout import MAX_CHOICE_SAMPLES

KEPT_BYTES = 2 * 10**9
_SPREAD = 0x9E3779B1  # multiples of it, modulo 2^32, lie evenly: the golden ratio


class Gathered(NamedTuple):
    """What all processes know together.

    Attributes:
        features: Shape ``(N, D)``, or ``(M, D)`` beside statistics.
        labels: Their labels.
        statistics: Of all N, where these are too many to be kept.
    """

    features: Tensor
    labels: Tensor
    statistics: ClassStatistics | None


class FeatureSums:
    """What one process keeps of the features that go by: all of them, as float32, up to 2 GB over all processes.

    Beyond that, and where there are more than 8,192 of more than 8,192 columns, they become class statistics with a
    scatter, and 2,000 of them are kept, or four a class, evenly over the order of the data.

    Args:
        num_features: D.
        num_classes: K.
        narrow: Called when features become statistics; returns the columns that stay, at most 8,192.
        rank: This process.
        ranks: Number of processes; rows of the data go to them in turn.
        device: Of the features.
        kept_bytes: The most to keep.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        narrow: Callable[[], Tensor],
        rank: int = 0,
        ranks: int = 1,
        *,
        device: torch.device | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self.num_classes = num_classes
        self._narrow = narrow
        self._columns: Tensor | None = None
        self._first, self._step = rank, ranks
        self._most_rows = kept_bytes // (4 * num_features * ranks)
        self._sample_size = max(MAX_CHOICE_SAMPLES, 4 * num_classes)
        self._batches = [(torch.empty(0, num_features, device=device), torch.empty(0, dtype=torch.long, device=device))]
        self._places = torch.empty(0, dtype=torch.long)
        self._seen = 0
        self._statistics: ClassStatistics | None = None

    @torch.inference_mode(False)
    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch, shapes ``(N, D)`` and ``(N,)``."""
        # Clones: views would hold what they are of, and what comes from inference mode enters no graph.
        self._batches.append((features.clone(), labels.clone()))
        places = torch.arange(self._seen, self._seen + len(labels)) * self._step + self._first
        self._places = torch.cat([self._places, places])
        self._seen += len(labels)
        most = self._most_rows if self._statistics is None else 2 * self._sample_size
        if len(self._places) > most:
            self._fold()

    def gather(self) -> Gathered:
        """Return what all processes have, rows in the order of the data."""
        total = int(_sum(torch.tensor(self._seen, device=self._device)))
        width = self._batches[0][0].shape[1]
        crowded = self._statistics is not None or min(total, width) > MAX_SCATTER_FEATURES
        if int(_sum(torch.tensor(int(crowded), device=self._device))):
            self._fold()
        rows, labels = self._joined()
        self._batches = [(rows, labels)]
        if not _is_distributed():
            return Gathered(rows, labels, self._statistics)
        places = torch.cat(gather_all_tensors(self._places.to(self._device)))
        order = places.argsort()
        rows, labels = (torch.cat(gather_all_tensors(value.contiguous()))[order] for value in (rows, labels))
        statistics = None if self._statistics is None else sum_class_statistics(self._statistics, _sum)
        return Gathered(rows, labels, statistics)

    @property
    def _device(self) -> torch.device:
        return self._batches[0][0].device

    def _joined(self) -> tuple[Tensor, Tensor]:
        """Join the batches, each given up when it is copied: together they take as much memory as the whole."""
        labels, first = torch.cat([labels for _, labels in self._batches]), self._batches[0][0]
        rows, start = first.new_empty(len(labels), first.shape[1]), 0
        self._batches.reverse()
        while self._batches:
            batch, _ = self._batches.pop()
            rows[start : start + len(batch)] = batch
            start += len(batch)
        return rows, labels

    def _fold(self) -> None:
        """Add what came since the last time to the statistics, and keep a sample."""
        sampled = int(self._statistics is not None)
        if self._statistics is None:
            self._columns = self._narrow().to(self._device)
            self._statistics = empty_class_statistics(self.num_classes, len(self._columns), self._device)
        for place in range(sampled, len(self._batches)):  # one at a time: together they take as much memory again
            rows, labels = self._batches[place]
            self._batches[place] = rows[:, self._columns], labels
            update_class_statistics_(self._statistics, *self._batches[place])
        rows, labels = self._joined()
        kept = (self._places * _SPREAD % 2**32).argsort(stable=True)[: self._sample_size].sort().values
        self._places = self._places[kept]
        kept = kept.to(rows.device)
        self._batches = [(rows[kept], labels[kept])]


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _sum(value: Tensor) -> Tensor:
    """Sum over all processes."""
    total = value.clone()
    if _is_distributed():
        torch.distributed.all_reduce(total)
    return total
