"""Rows of a table as pairs of image and label, and what becomes of images that do not decode."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from nc_finetune._common.atomic_files import write_text_atomically
from nc_finetune._common.csv_text import csv_text
from nc_finetune.data._pixels.file_stamps import FileStamps
from nc_finetune.data._pixels.pixel_store import PixelStore
from nc_finetune.data._pixels.transforms import DecodeAndResize
from nc_finetune.data.patient_loader import PatientLoader
from nc_finetune.data.sources.source import ImageTable
from nc_finetune.data.splits.stratified import Indices

# Returns a tensor; to jsonargparse a class there would say that the callable builds objects of it.
Transform = Callable[[Tensor], Any]
OnBadImage = Literal["raise", "skip"]
Sample = tuple[Tensor, "int | Tensor"]


class Drawn(NamedTuple):
    """An item and the seed of its augmentation: it does not matter which process draws it, and after what."""

    item: int
    seed: int


def _place(item: int | Drawn) -> int:
    return item if isinstance(item, int) else item.item


@dataclass(frozen=True)
class BadImage:
    """An image that was left out.

    Attributes:
        table: The split of the source that it is in.
        row: Its row there.
        path: Its file, where it has one.
        reason: Why it does not decode.
    """

    table: str
    row: int
    path: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.path or f'row {self.row} of {self.table}'}: {self.reason}"


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
        decode: Callable[[dict[str, Any]], Tensor],
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
        """The label of each item; see :attr:`ImageTable.labels <nc_finetune.data.sources.source.ImageTable>`."""
        return [self.table.labels[row] for row in self.indices]

    def class_counts(self, num_classes: int) -> list[int]:
        """Return how often each of the K labels occurs."""
        sets = self.table.label_sets
        found = Counter(label for row in self.indices for label in (sets[row] if sets else (self.table.labels[row],)))
        return [found[label] for label in range(num_classes)]

    def _decoded(self, row: int) -> Tensor:
        encoded = self.table.encoded(row)
        try:
            return self.decode(encoded)
        except Exception as error:  # every codec has its own kinds
            name = f"image {encoded['path']}" if encoded["path"] else "image"
            raise ValueError(
                f"the {name} in row {row} does not decode: {error}; repair or remove it, or set on_bad_image='skip'"
            ) from error

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


def pixels_identity(images: LabelledImages, table: str) -> str | None:
    """Say which pixels and labels come of images, without decoding one.

    Args:
        images: The images.
        table: Which table they are in: a hash of what it holds.

    Returns:
        A hash that is the same for the same pixels and labels; ``None`` with a transform, or a decoder of one's own.
    """
    if images.transform is not None or not isinstance(images.decode, DecodeAndResize):
        return None
    stamp = FileStamps(images.table.rows, images.table.image_column)
    parts = (table, list(images.indices), images.decode.identity, [stamp(row) for row in images.indices])
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def shared_flags(size: int) -> Tensor:
    """Return uint8 zeros that worker processes write to, and their parent reads."""
    flags: Tensor = torch.zeros(size, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    return flags


def bad_images(
    name: str, table: ImageTable, flags: Tensor, decode: Callable[[dict[str, Any]], Tensor]
) -> list[BadImage]:
    """Say which images were marked, and why.

    Args:
        name: The split of the source.
        table: Its rows.
        flags: Where they were marked.
        decode: What they do not go through.

    Returns:
        In the order of the rows.
    """
    found = []
    for row in flags.nonzero().flatten().tolist():
        encoded = table.encoded(row)
        try:
            decode(encoded)
            reason = "did not decode before, and does now"
        except Exception as error:  # every codec has its own kinds
            reason = str(error)
        found.append(BadImage(name, row, encoded["path"], reason))
    return found


def write_bad_images(path: Path, bad: Sequence[BadImage]) -> None:
    """Write a CSV file with a line for each image that was left out.

    Args:
        path: The file.
        bad: The images.
    """
    lines = [[image.table, image.row, image.path, image.reason] for image in bad]
    write_text_atomically(path, csv_text([["split", "row", "path", "reason"], *lines]))


def collate(samples: list[Any]) -> Any:
    """Stack a batch; one of which nothing was left is ``None``."""
    return default_collate(samples) if samples else None


class SkippingLoader(PatientLoader):
    """A loader without the batches of which nothing was left."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return (batch for batch in super().__iter__() if batch is not None)
