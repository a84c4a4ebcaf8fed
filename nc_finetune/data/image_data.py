"""Images and labels for training, validation, testing and measuring, as one LightningDataModule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nc_finetune.data.folders import SPLIT_NAMES
from nc_finetune.data.sources import ImageTable, Source, load_source
from nc_finetune.data.splits import Indices, split_off, take_per_class
from nc_finetune.data.transforms import INTERPOLATIONS, DecodeAndResize
from nc_finetune.errors import unknown_name

Transform = Callable[[Tensor], Tensor]


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Some rows of a table as ``(uint8 image (3, H, W), label)``.

    Args:
        table: The split that the rows are in.
        indices: The rows; ``None`` is all of them.
        decode: From an encoded image to a uint8 tensor.
        transform: Applied to that tensor, e.g. an augmentation.
    """

    def __init__(
        self,
        table: ImageTable,
        indices: Indices | None,
        decode: Callable[[dict[str, Any]], Tensor],
        transform: Transform | None = None,
    ) -> None:
        self.table = table
        self.indices: Sequence[int] = range(len(table.labels)) if indices is None else indices.tolist()
        self.decode = decode
        self.transform = transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        row = self.indices[item]
        encoded = self.table.encoded(row)
        try:
            image = self.decode(encoded)
        except Exception as error:  # every codec has its own kinds
            name = f"image {encoded['path']}" if encoded["path"] else "image"
            raise ValueError(f"the {name} in row {row} does not decode: {error}; repair or remove it") from error
        return image if self.transform is None else self.transform(image), self.table.labels[row]

    @property
    def labels(self) -> list[int]:
        """The label of each item."""
        return [self.table.labels[row] for row in self.indices]


class ImageData(L.LightningDataModule):
    """Labelled images from a built-in set, a local folder or the HF hub.

    Batches are ``(images, labels)``: uint8 of shape ``(N, 3, image_size, image_size)`` and int64 of shape ``(N,)``;
    the model normalises. Splits are stratified and depend on labels and seeds alone. The test split is the source's
    own, or one that is the same for every ``seed``; the validation split is the source's own, or is taken from the
    train split.

    Args:
        source: ``"sklearn:digits"``, a folder (parquet, arrow, a saved HF dataset, or images in one folder a class),
            or the id of a data set on the HF hub; see :func:`~nc_finetune.data.load_source`.
        image_size: Height and width of the images in pixels.
        samples_per_class: Training images a class; ``None`` is every one that is not held out.
        train_share: Share in ``(0, 1)`` of the images that are not held out to train on, stratified; ``None`` is all.
        seed: Which training sample is drawn, and which images are held out for validation.
        val_size: Images held out of the train split for validation, where the source has no validation split: a share
            or a number; ``None`` is 0.1, or with ``samples_per_class`` all that were not drawn.
        test_size: Images held out for the test, where the source has no test split: a share or a number.
        max_test_images: Take so many of the source's own test split, stratified and the same ones for every ``seed``;
            ``None`` is all.
        batch_size: Images a batch.
        num_workers: Processes that decode; 0 decodes in the main process.
        transform: Augmentation of training images, uint8 tensor in and out.
        interpolation: Filter for resizing.
        image_column: Column of the images in a table; ``None`` finds it.
        label_column: Column of the labels in a table; ``None`` finds it.

    Raises:
        ValueError: At once for an argument out of range; when the data are first looked at, if they are unknown or
            have one class only, an empty split, labels out of range or too few images a class.
        FileNotFoundError: If the source is a path and nothing is there.

    Example:
        >>> data = ImageData("sklearn:digits", image_size=32, samples_per_class=20)
        >>> data.num_classes, len(data.train_set), len(data.val_set), len(data.test_set)
        (10, 200, 1238, 359)
        >>> images, labels = next(iter(data.val_dataloader()))
        >>> images.shape, images.dtype
        (torch.Size([32, 3, 32, 32]), torch.uint8)
    """

    def __init__(
        self,
        source: str,
        *,
        image_size: int = 224,
        samples_per_class: int | None = None,
        train_share: float | None = None,
        seed: int = 0,
        val_size: int | float | None = None,
        test_size: int | float = 0.2,
        max_test_images: int | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        transform: Transform | None = None,
        interpolation: str = "bicubic",
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        super().__init__()
        sizes = {"image_size": image_size, "batch_size": batch_size, "samples_per_class": samples_per_class}
        for name, value in {**sizes, "max_test_images": max_test_images}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, size in (("val_size", val_size), ("test_size", test_size)):
            if size is not None and not (0 < size < 1 or (size >= 1 and size % 1 == 0)):
                raise ValueError(f"{name} must be a share in (0, 1) or a number of images of at least 1, got {size}")
        if train_share is not None and (samples_per_class is not None or not 0 < train_share < 1):
            raise ValueError(
                f"train_share must be in (0, 1), without samples_per_class, got {train_share} and {samples_per_class}"
            )
        if interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
        self.source = source
        self.image_size = image_size
        self.samples_per_class = samples_per_class
        self.train_share = train_share
        self.seed = seed
        self.val_size = val_size
        self.test_size = test_size
        self.max_test_images = max_test_images
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.transform = transform
        self.interpolation = interpolation
        self.columns = (image_column, label_column)

    @cached_property
    def data(self) -> Source:
        """The source, loaded when it is first asked for."""
        return load_source(self.source, *self.columns)

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names; the label is the index."""
        return self.data.class_names

    @property
    def num_classes(self) -> int:
        """K, the number of classes in the data."""
        return len(self.class_names)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the labels and images of the source."""
        return self.data.fingerprint()

    @property
    def train_set(self) -> LabelledImages:
        """The training images, augmented if a transform was given."""
        return self._images("train", self.transform)

    @property
    def val_set(self) -> LabelledImages:
        """The validation images."""
        return self._images("val")

    @property
    def test_set(self) -> LabelledImages:
        """The test images."""
        return self._images("test")

    def prepare_data(self) -> None:
        """Load the source once, so that only one process downloads."""
        _ = self.data

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return shuffled training batches."""
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return validation batches."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return test batches."""
        return self.eval_dataloader("test")

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return test batches."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, split: str) -> DataLoader[tuple[Tensor, int]]:
        """Return batches of ``"train"``, ``"val"`` or ``"test"`` in a fixed order, without augmentation."""
        return self._loader(self._images(split), shuffle=False)

    def _loader(self, images: LabelledImages, shuffle: bool) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(
            images,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _images(self, split: str, transform: Transform | None = None) -> LabelledImages:
        if split not in SPLIT_NAMES:
            raise unknown_name("split", split, SPLIT_NAMES)
        table, indices = self._split_rows[split]
        decode = DecodeAndResize(self.image_size, self.interpolation)
        return LabelledImages(self.data.splits[table], indices, decode, transform)

    @cached_property
    def _split_rows(self) -> dict[str, tuple[str, Indices | None]]:
        """In which table of the source each split is, and in which of its rows; ``None`` is all of them."""
        tables = self.data.splits
        rows: dict[str, tuple[str, Indices | None]] = {name: (name, None) for name in ("val", "test") if name in tables}
        if "test" in rows and self.max_test_images is not None:
            labels = tables["test"].labels
            if self.max_test_images < len(labels):
                rows["test"] = ("test", split_off(labels, self.max_test_images, seed=0)[0])
        pool = np.arange(len(tables["train"].labels), dtype=np.int64)
        if "test" not in rows:
            held_out, pool = self._hold_out("test_size", pool, self.test_size, seed=0)
            rows["test"] = ("train", held_out)
        if self.samples_per_class is not None:
            pool, rest = self._draw(pool, self.samples_per_class)
            if "val" not in rows:
                rows["val"] = ("train", self._cap(rest))
        elif "val" not in rows:
            size = 0.1 if self.val_size is None else self.val_size
            held_out, pool = self._hold_out("val_size", pool, size, self.seed)
            rows["val"] = ("train", held_out)
        if self.train_share is not None:
            pool, _ = self._hold_out("train_share", pool, self.train_share, self.seed)
        rows["train"] = ("train", pool)
        return rows

    def _labels(self, rows: Indices) -> list[int]:
        labels = self.data.splits["train"].labels
        return [labels[row] for row in rows]

    def _hold_out(self, name: str, rows: Indices, size: int | float, seed: int) -> tuple[Indices, Indices]:
        """Split rows of the train table in two."""
        try:
            held_out, rest = split_off(self._labels(rows), size, seed)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return rows[held_out], rows[rest]

    def _draw(self, rows: Indices, number: int) -> tuple[Indices, Indices]:
        """Draw rows of the train table, the same number of each class."""
        try:
            drawn, rest = take_per_class(self._labels(rows), number, self.seed, self.class_names)
        except ValueError as error:
            raise ValueError(f"samples_per_class: {error}") from error
        return rows[drawn], rows[rest]

    def _cap(self, rest: Indices) -> Indices:
        """Keep ``val_size`` of the rows that were not drawn for training."""
        if not rest.size:
            raise ValueError(
                f"samples_per_class={self.samples_per_class} takes all images, so the val split is empty; ask for fewer"
            )
        if self.val_size is None or self.val_size == len(rest):
            return rest
        return self._hold_out("val_size", rest, self.val_size, self.seed)[0]
