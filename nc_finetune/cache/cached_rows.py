"""A dataset whose samples are rows of stores."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nc_finetune._common.data_facts import read_samples
from nc_finetune._common.lightning_internals import replace_parts
from nc_finetune.cache.feature_store import FeatureStore

LABELS = "labels"
CachedBatch = tuple[dict[str, Tensor], Tensor]


class CachedRows(Dataset[CachedBatch]):
    """What was kept of each sample, and its label.

    Args:
        stores: One for each process that filled its share: sample i is in store ``i % P``, at place ``i // P``. Of
            several views, the second view of all samples follows the first.
        loader: The loader of the images.
        views: How often each sample was kept.
        row_of: From an item of the loader's sampler to the sample's number; ``None`` for one that says more than that.

    Attributes:
        epoch: Which view is given: each in turn.
        uncached: A loader of the images.
    """

    def __init__(
        self, stores: Sequence[FeatureStore], loader: DataLoader[Any], views: int, row_of: Callable[[Any], int | None]
    ) -> None:
        self._loader = loader
        self.uncached = copy.copy(loader)
        self.stores = list(stores)
        self.views = views
        self.epoch = 0
        self.row_of = row_of
        self._told = False
        self._rows = sum(len(store) for store in self.stores) // views

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> Any:
        return self.__getitems__([row])

    def __getitems__(self, items: Sequence[Any]) -> Any:
        """Return a whole batch at once; the loader asks for it by this name."""
        rows = [row for item in items if (row := self.row_of(item)) is not None]
        if len(rows) < len(items):
            return self._read(items)
        indices = torch.as_tensor(rows)
        owners, places = indices % len(self.stores), indices // len(self.stores)
        view = self.epoch % self.views
        parts = [
            store.rows(places[owners == owner] + view * (len(store) // self.views))
            for owner, store in enumerate(self.stores)
        ]
        batch = parts[0] if len(parts) == 1 else _interleave(parts, owners)
        return batch, batch.pop(LABELS)

    def _read(self, items: Sequence[Any]) -> Any:
        """Return samples themselves, where the sampler decides more of them than their number."""
        if not self._told:
            self._told = True
            warnings.warn(
                f"PrefixCache: the sampler gives {type(items[0]).__name__} in place of numbers of samples, which may"
                " say how each is augmented; such batches are read and nothing that was kept is used",
                stacklevel=2,
            )
        return self.uncached.collate_fn(read_samples(self.uncached.dataset, items))

    def install(self) -> None:
        """Let the loader give these rows in place of images: with its own sampler, state and kind, whoever holds it."""
        in_this_process = {"num_workers": 0, "prefetch_factor": None, "persistent_workers": False, "timeout": 0}
        replace_parts(self._loader, dataset=self, collate_fn=_as_it_is, **in_this_process)

    def remove(self) -> None:
        """Let the loader give images again."""
        names = ("dataset", "collate_fn", "num_workers", "prefetch_factor", "persistent_workers", "timeout")
        replace_parts(self._loader, **{name: getattr(self.uncached, name) for name in names})


def _as_it_is(batch: Any) -> Any:
    return batch


def _interleave(parts: Sequence[dict[str, Tensor]], owners: Tensor) -> dict[str, Tensor]:
    """Put rows of several stores back into the order in which they were asked for."""
    places = torch.cat([(owners == owner).nonzero().flatten() for owner in range(len(parts))]).argsort()
    return {name: torch.cat([part[name] for part in parts])[places] for name in parts[0]}
