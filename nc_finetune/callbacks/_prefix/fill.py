"""Fill the cache of a frozen prefix, or find it."""

from __future__ import annotations

import hashlib
import operator
import random
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from nc_finetune.backbones import FrozenPrefix
from nc_finetune.cache import (
    CachedRows,
    FeatureStore,
    FileWriter,
    MemoryWriter,
    RowLayout,
    hash_batches,
    open_store,
)
from nc_finetune.cache.cached_rows import LABELS
from nc_finetune.data.batch_transforms import numbers_as_they_come
from nc_finetune.data.labelled_images import Drawn
from nc_finetune.data.patient_loader import PatientLoader
from nc_finetune.passes.batches import prepare_batch
from nc_finetune.passes.evaluation import evaluating

_CHECKED_ROWS = 4


class CannotKeepError(RuntimeError):
    """What must be kept is larger than the budget, or cannot be read."""


@dataclass
class PrefixFill:
    """One pass of this process's share of a dataset through the frozen prefix.

    Attributes:
        trainer: How batches get to the device and in which precision is its business.
        module: Its module, with the cut network as ``split``.
        loader: Whose dataset is kept.
        folder: Where caches are; ``None`` is memory.
        dtype: In which outputs are kept; ``None`` leaves them as they are.
        budget: The most bytes to keep; ``None`` is half of what is free.
        number: Which of the loaders of its split that is.
        training: Whether the loader is that of the training split, whose transfer hooks may augment.
        views: How often each sample is read, where it comes out at random; ``None`` is once, as it is.
        identity: A text that is the same for the same pixels and labels; ``None`` hashes them all.
    """

    trainer: L.Trainer
    module: Any
    loader: DataLoader[Any]
    folder: Path | None
    dtype: torch.dtype | None
    budget: int | None
    number: int
    training: bool
    views: int | None
    identity: str | None

    def __post_init__(self) -> None:
        self._split: FrozenPrefix = self.module.split
        self._size = len(self.loader.dataset)  # type: ignore[arg-type]
        self._share = range(self.trainer.global_rank, self._size, self.trainer.world_size)
        self._times = self.views or 1
        self._rows = len(self._share) * self._times

    def run(self) -> CachedRows:
        """Return the cached dataset.

        Raises:
            CannotKeepError: If it does not fit into the budget, or images are of other sizes or do not decode.
            OSError: If the folder is not writable or full.
        """
        if self.folder is None:
            stores = [self._fill(MemoryWriter(self._layouts(), self._rows))]
        else:
            stores = self._in_files(self.folder)
        return CachedRows(stores, self.loader, self._times, _row_of)

    def _in_files(self, folder: Path) -> list[FeatureStore]:
        ranks, key = self.trainer.world_size, self._key()
        places = [folder / f"{key}-{number + 1}of{ranks}" for number in range(ranks)]
        failed = self._find_or_fill(places[self.trainer.global_rank])
        done = self.trainer.strategy.reduce_boolean_decision(failed is None, all=True)
        stores = [store for place in places if (store := open_store(place)) is not None]
        if failed is not None or not done or len(stores) != ranks:
            raise OSError(f"the cache could not be kept in {folder} ({failed or 'another process failed'})")
        return stores

    def _find_or_fill(self, place: Path) -> OSError | None:
        """Return why it came to nothing, so that no process waits for another that has failed."""
        found, failed = False, None
        try:
            found = self._is_there(place)
        except OSError as error:
            failed = error
        if self.trainer.strategy.reduce_boolean_decision(found, all=True):
            return None  # what is there already needs no room
        layouts = self._layouts()
        if not found and failed is None:
            try:
                self._fill(FileWriter(layouts, place))
            except OSError as error:
                failed = error
        return failed

    def _layouts(self) -> dict[str, RowLayout]:
        """Look at one batch, and whether there is room for all."""
        with self._looking():
            layouts = {name: RowLayout.of(value, self.dtype) for name, value in next(self._outputs(2)).items()}
        wanted = self._rows * sum(layout.row_bytes for layout in layouts.values())
        free = _free_bytes(self.folder)
        room = min(free, free // 2 if self.budget is None else self.budget)
        if not self.trainer.strategy.reduce_boolean_decision(wanted <= room, all=True):
            raise CannotKeepError(
                f"{self._rows} outputs take {wanted / 1e9:.3g} GB, there is room for {room / 1e9:.3g} GB in"
                f" {self.folder or 'memory'}; free some, raise budget_gb, name a folder, keep bfloat16 or cut later"
            )
        return layouts

    def _is_there(self, place: Path) -> bool:
        """Tell whether a cache is whole and holds what the network gives today; otherwise remove it."""
        store = open_store(place)
        if store is not None and len(store) == self._rows and self._holds_today(store):
            return True
        if place.exists():
            warnings.warn(f"PrefixCache: {place} is truncated or stale; it is computed anew", stacklevel=2)
            shutil.rmtree(place)
        return False

    def _holds_today(self, store: FeatureStore) -> bool:
        if self.views is not None:  # the key holds the pixels of the first view
            return True
        with self._looking():
            fresh = next(self._outputs(_CHECKED_ROWS))
        rows = store.rows(torch.arange(len(fresh[LABELS])))
        exact = self.dtype is None and self.trainer.precision == "32-true" and self.module.device.type == "cpu"
        tolerance = 1e-4 if exact else 2e-2
        return fresh.keys() == rows.keys() and all(
            rows[name].shape == value.shape and _close(rows[name], value.cpu(), tolerance)
            for name, value in fresh.items()
        )

    def _fill(self, writer: MemoryWriter | FileWriter) -> FeatureStore:
        try:
            with self._looking():
                for view in range(self._times):
                    _seed(view)
                    for kept in self._outputs():
                        writer.append(kept)
            return writer.finish()
        except BaseException:
            writer.abandon()
            raise

    def _outputs(self, rows: int | None = None) -> Iterator[dict[str, Tensor]]:
        for images, labels in self._batches(rows):
            yield {**self._split.prefix(images), LABELS: labels}

    def _batches(self, rows: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Read this process's share in its order, or the first rows of it, as the network sees them."""
        share, shape, read = self._share[:rows], self._split.image_shape, 0
        for batch in read_share(self.loader, share, self.loader.num_workers if rows is None else 0):
            images, labels = prepare_batch(self.trainer, self.module, batch, self.number)
            if images.shape[1:] != shape:
                raise CannotKeepError(f"images are of several sizes, {shape} and {images.shape[1:]}")
            read += len(labels)
            yield images, labels
        if read != len(share):
            raise CannotKeepError(f"{len(share) - read} images do not decode and are left out")

    @contextmanager
    def _looking(self) -> Iterator[None]:
        with evaluating(self.trainer, self.module, training=self.training), numbers_as_they_come():
            yield

    def _key(self) -> str:
        """Hash everything that decides what is kept, the pixels of the first view among it."""
        pixels = [self.identity] if self.identity is not None else self._pixels()
        how = self._times, str(self.dtype), str(self.trainer.precision)
        split = self._split
        where = split.cut, split.image_shape, split.skip_layers, split.input_layers, split.pooling
        parts = (split.key(), pixels, self._size, *how, *where)
        return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()

    def _pixels(self) -> list[str]:
        """Hash each process's share."""
        with self._looking():
            _seed(0)
            found = [hash_batches(self._batches())] * self.trainer.world_size
        if len(found) > 1:
            torch.distributed.all_gather_object(found, found[0])
        return found


def read_share(loader: DataLoader[Any], share: Sequence[int], num_workers: int = 0) -> Iterator[Any]:
    """Yield batches of some samples of a loader's dataset, in their order."""
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    found = PatientLoader(
        Subset(loader.dataset, share),
        batch_size=size,
        num_workers=num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
    )
    return (batch for batch in found if batch is not None)


def _row_of(item: Any) -> int | None:
    """Return the number of the sample that a sampler names; ``None`` where it says more than that."""
    if isinstance(item, Drawn):
        return item.item
    try:
        return operator.index(item)
    except TypeError:
        return None


def _seed(view: int) -> None:
    """Draw the same random numbers for a view in every run."""
    torch.manual_seed(view)
    random.seed(view)
    np.random.seed(view)  # for transforms that still draw from there


def _close(kept: Tensor, fresh: Tensor, tolerance: float) -> bool:
    scale = float(fresh.double().square().mean().sqrt())
    return torch.allclose(kept.double(), fresh.double(), rtol=tolerance, atol=tolerance * scale)


def _free_bytes(folder: Path | None) -> int:
    """Return the bytes that are free in memory, or where the folder is or will be."""
    if folder is not None:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        return shutil.disk_usage(there).free
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:  # not on this system
        found = None
    return int(found[1]) * 1024 if found else 2**62
