"""Images that nobody has labelled: those of a folder, or of a source."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nc_finetune.data._pixels.image_files import is_image_file
from nc_finetune.data._pixels.transforms import INTERPOLATIONS, DecodeAndResize
from nc_finetune.data.bad_images import BadImage, OnBadImage, decoded, described, shared_flags
from nc_finetune.data.columns.image_columns import below_one_folder
from nc_finetune.data.columns.split_names import UNLABELLED
from nc_finetune.data.labelled_images import SkippingLoader, collate
from nc_finetune.data.sources.file_listing import LeftOut, visible_files
from nc_finetune.data.sources.source import load_unlabelled
from nc_finetune.data.sources.tables import EncodedImages
from nc_finetune.data.thumbnails import thumbnail_of
from nc_finetune.errors import DataWarning, check_name


class UnlabelledImages(Dataset[Tensor]):
    """Images without labels, uint8 of shape ``(3, image_size, image_size)``.

    Args:
        encoded: Returns each image as ``{"bytes": ..., "path": ...}``.
        decode: From that to a tensor.
        skip: Leave images out that do not decode.
        names: The name of each; ``None`` is its file, below the folder that all are in, or its place where there is
            none.
    """

    def __init__(
        self,
        encoded: Sequence[Callable[[], dict[str, Any]]],
        decode: DecodeAndResize,
        skip: bool,
        names: Sequence[str] | None = None,
    ) -> None:
        self.encoded = encoded
        self.decode = decode
        self._names = names
        self.bad = shared_flags(len(encoded)) if skip else None

    @classmethod
    def of_tables(cls, tables: Iterable[EncodedImages], decode: DecodeAndResize, skip: bool) -> UnlabelledImages:
        """Take all rows of some tables, one table after the other."""
        return cls([partial(table.encoded, row) for table in tables for row in range(len(table.rows))], decode, skip)

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, item: int) -> Tensor:
        encoded = self.encoded[item]()
        return decoded(self.decode, encoded, f"image {encoded['path'] or f'in place {item}'}")

    def __getitems__(self, items: Sequence[int]) -> list[Tensor]:
        """Return the images of a batch, without those that are to be skipped."""
        if self.bad is None:
            return [self[item] for item in items]
        found = []
        for item in items:
            try:
                found.append(self[item])
            except ValueError:
                self.bad[item] = 1
        return found

    def kept_places(self) -> list[int]:
        """Return the places of the images that have not been skipped so far, in their order."""
        return [place for place in range(len(self)) if self.bad is None or not self.bad[place]]

    def kept(self) -> tuple[str, ...]:
        """Return the names of the images in their order, without those that were skipped so far."""
        return self._named(0)

    def skipped(self) -> tuple[str, ...]:
        """Return the names of the images that did not decode so far."""
        return self._named(1)

    def found_bad(self) -> list[BadImage]:
        """Say which images did not decode so far, and why; each is decoded once more."""
        places = [] if self.bad is None else self.bad.nonzero().flatten().tolist()
        return [described(self.decode, self.encoded[place](), UNLABELLED, place) for place in places]

    def _named(self, flag: int) -> tuple[str, ...]:
        flags = [0] * len(self) if self.bad is None else self.bad.tolist()
        return tuple(name for name, found in zip(self.names(), flags, strict=True) if found == flag)

    def names(self) -> Sequence[str]:
        """Return the name of each image."""
        if self._names is None:
            paths = below_one_folder([image()["path"] or "" for image in self.encoded])
            self._names = [path or f"image {place}" for place, path in enumerate(paths)]
        return self._names


class _UnlabelledData(L.LightningDataModule):
    """What ``trainer.predict`` and its writer need: images in an order, and their names."""

    def __init__(self, images: UnlabelledImages, class_names: Sequence[str], batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._images = images

    @property
    def files(self) -> tuple[str, ...]:
        """The images in the order of the batches, without those that were skipped."""
        return self._images.kept()

    @property
    def skipped(self) -> tuple[str, ...]:
        """The images that did not decode so far."""
        return self._images.skipped()

    def thumbnail(self, place: int) -> bytes:
        """Return a small PNG or JPEG file of an image.

        Args:
            place: In the order of ``files``.
        """
        return thumbnail_of(self._images.encoded[self._images.kept_places()[place]]())

    def predict_dataloader(self) -> DataLoader[Tensor]:
        """Return the images in the order of ``files``."""
        return SkippingLoader(
            self._images, batch_size=self.batch_size, num_workers=self.num_workers, collate_fn=collate
        )


class UnlabelledFolder(_UnlabelledData):
    """All images below a folder, for ``trainer.predict``: batches of uint8, shape ``(N, 3, image_size, image_size)``.

    Args:
        folder: Where the images are, in any depth; hidden files are left out, and with a warning files of
            other kinds.
        class_names: K names of the classes that a model tells apart.
        image_size: Height and width of the images in pixels.
        interpolation: Filter for resizing.
        batch_size: Images a batch.
        num_workers: Processes that decode; 0 decodes in the main process.
        on_bad_image: What becomes of images that do not decode: ``"raise"`` or ``"skip"``.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If it holds no images, or an argument is out of range.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        class_names: Sequence[str],
        *,
        image_size: int = 224,
        interpolation: str = "bicubic",
        batch_size: int = 32,
        num_workers: int = 0,
        on_bad_image: OnBadImage = "raise",
    ) -> None:
        decode = _decoder(interpolation, image_size, batch_size)
        root = Path(folder)
        if not root.is_dir():
            raise NotADirectoryError(f"no folder of images at {root}")
        files = visible_files(root)
        found = [file for file in files if is_image_file(file)]
        if not found:
            raise ValueError(f"{root} holds no images of a kind that Pillow decodes, as .jpg, .png and .webp")
        if (left_out := LeftOut.of(files, found)).files:
            warnings.warn(f"{root}: {left_out}", DataWarning, stacklevel=2)
        encoded = [partial(_file, str(root / file)) for file in found]
        images = UnlabelledImages(encoded, decode, on_bad_image == "skip", [file.as_posix() for file in found])
        super().__init__(images, class_names, batch_size, num_workers)


class UnlabelledSource(_UnlabelledData):
    """The images of a source that have no label, or all of them where each has one, for ``trainer.predict``.

    Args:
        source: As for :func:`~nc_finetune.data.load_source`: tables, archives, a short name, an id of the hub.
        class_names: K names of the classes that a model tells apart.
        image_size: Height and width of the images in pixels.
        interpolation: Filter for resizing.
        batch_size: Images a batch.
        num_workers: Processes that decode; 0 decodes in the main process.
        on_bad_image: What becomes of images that do not decode: ``"raise"`` or ``"skip"``.
        image_column: Column of the images in a table; ``None`` finds it.
        label_column: Column of the labels in a table; ``None`` finds it.

    Raises:
        ValueError: If the source cannot be read, or an argument is out of range.
    """

    def __init__(
        self,
        source: str,
        class_names: Sequence[str],
        *,
        image_size: int = 224,
        interpolation: str = "bicubic",
        batch_size: int = 32,
        num_workers: int = 0,
        on_bad_image: OnBadImage = "raise",
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        decode = _decoder(interpolation, image_size, batch_size)
        found = load_unlabelled(source, image_column, label_column)
        images = UnlabelledImages.of_tables(found.values(), decode, on_bad_image == "skip")
        super().__init__(images, class_names, batch_size, num_workers)


def _decoder(interpolation: str, image_size: int, batch_size: int) -> DecodeAndResize:
    check_name("interpolation", interpolation, INTERPOLATIONS)
    if min(image_size, batch_size) < 1:
        raise ValueError(f"image_size and batch_size must be at least 1, got {image_size} and {batch_size}")
    return DecodeAndResize(image_size, interpolation)


def _file(path: str) -> dict[str, Any]:
    return {"bytes": None, "path": path}
