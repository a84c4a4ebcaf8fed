"""Rows of a table as pairs of image and label, without those that are to be left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from nc_finetune.data._pixels.pixel_store import PixelStore
from nc_finetune.data._pixels.transforms import DecodeAndResize
from nc_finetune.data.bad_images import Decode, decoded
from nc_finetune.data.patient_loader import PatientLoader
from nc_finetune.data.sources.tables import ImageTable
from nc_finetune.data.splits.stratified import Indices

# Returns a tensor; to jsonargparse a class there would say that the callable builds objects of it.
Transform = Callable[[Tensor], Any]
Sample = tuple[Tensor, "int | Tensor"]


class Drawn(NamedTuple):
    """An item and the seed of its augmentation: it does not matter which process draws it, and after what."""

    item: int
    seed: int


def _place(item: int | Drawn) -> int:
    return item if isinstance(item, int) else item.item


class LabelledImages(Dataset[Sample]):
    """Some rows of a table as ``(uint8 image (3, H, W), label)``.

    Args:
        table: The split that the rows are in.
        indices: The rows; ``None`` is all of them.
        decode: From an encoded image to a uint8 tensor.
        transform: Applied to that tensor, e.g. an augmentation.
        bad: Shape ``(rows of the table,)``, uint8, in shared memory: batches leave images out that do not decode, and
            set 1 where they are. ``None`` raises.
        fill: Let a batch of which nothing decodes have the next image that does, so that it is not empty.
        num_classes: K, where the labels are vectors of 0 and 1, int64 of shape ``(K,)``.
        pixels: Keeps decoded images of the table; ``None`` decodes each time.
    """

    def __init__(
        self,
        table: ImageTable,
        indices: Indices | None,
        decode: Decode,
        transform: Transform | None = None,
        *,
        bad: Tensor | None = None,
        fill: bool = False,
        num_classes: int = 0,
        pixels: PixelStore | None = None,
    ) -> None:
        self.table = table
        self.indices: Sequence[int] = range(len(table.labels)) if indices is None else indices.tolist()
        self.decode = decode
        self.transform = transform
        self.bad = bad
        self.fill = fill
        self.num_classes = num_classes
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int | Drawn) -> Sample:
        row = self.indices[_place(item)]
        image = self._decoded(row) if self.pixels is None else self.pixels.get(row, partial(self._decoded, row))
        return self._augmented(image, item), self._target(row)

    def __getitems__(self, items: Sequence[int | Drawn]) -> list[Sample]:
        """Return the images of a batch, without those that are to be skipped."""
        if self.bad is None:
            return [self[item] for item in items]
        found = [sample for item in items if (sample := self._or_none(item)) is not None]
        if not found and self.fill:
            start = _place(items[-1]) + 1
            others = ((start + step) % len(self) for step in range(len(self)))
            found = [sample for item in others if (sample := self._or_none(item)) is not None][:1]
        return found

    @property
    def labels(self) -> list[int]:
        """The label of each item; see :attr:`ImageTable.labels <nc_finetune.data.sources.tables.ImageTable>`."""
        return [self.table.labels[row] for row in self.indices]

    def class_counts(self, num_classes: int) -> list[int]:
        """Return how often each of the K labels occurs."""
        found = Counter(label for row in self.indices for label in self.table.labels_of(row))
        return [found[label] for label in range(num_classes)]

    def identity(self, table: str) -> str | None:
        """Say which pixels and labels come of the images, without decoding one.

        Args:
            table: Which table they are in: a hash of what it holds.

        Returns:
            A hash that is the same for the same pixels and labels; ``None`` with a transform, or a decoder of one's
            own.
        """
        if self.transform is not None or not isinstance(self.decode, DecodeAndResize):
            return None
        parts = (table, list(self.indices), self.decode.identity, [self.table.stamp(row) for row in self.indices])
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def _decoded(self, row: int) -> Tensor:
        encoded = self.table.encoded(row)
        name = f"image {encoded['path']}" if encoded["path"] else "image"
        return decoded(self.decode, encoded, f"{name} in row {row}")

    def _augmented(self, image: Tensor, item: int | Drawn) -> Tensor:
        if self.transform is None:
            return image
        with torch.random.fork_rng(devices=[]) if isinstance(item, Drawn) else nullcontext():
            if isinstance(item, Drawn):
                torch.manual_seed(item.seed)
            augmented: Tensor = self.transform(image)
        return augmented

    def _or_none(self, item: int | Drawn) -> Sample | None:
        """Return an image, or mark it as bad."""
        row = self.indices[_place(item)]
        if self.bad is None or self.bad[row]:
            return None
        try:
            return self[item]
        except ValueError:
            self.bad[row] = 1
            return None

    def _target(self, row: int) -> int | Tensor:
        if self.table.label_sets is None:
            return self.table.labels[row]
        target = torch.zeros(self.num_classes, dtype=torch.int64)
        target[list(self.table.label_sets[row])] = 1
        return target


def collate(samples: list[Any]) -> Any:
    """Stack a batch; one of which nothing was left is ``None``."""
    return default_collate(samples) if samples else None


class SkippingLoader(PatientLoader):
    """A loader without the batches of which nothing was left."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return (batch for batch in super().__iter__() if batch is not None)
