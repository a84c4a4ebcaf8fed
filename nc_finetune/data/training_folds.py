"""Folds of the training images: some to train on, the others to judge by, and nothing else."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from nc_finetune.data.image_data import ImageData
from nc_finetune.data.splits.folds import held_out_folds
from nc_finetune.data.training_order import TrainingProgress
from nc_finetune.errors import DataWarning, check_name


class TrainingFold(L.LightningDataModule):
    """The training images of some data in two parts: those that are trained on, and those that are held out.

    Both come from one dataset, that of all training images, and differ in their samplers alone: what a
    :class:`~nc_finetune.callbacks.PrefixCache` keeps in a folder serves every fold, and a fit of all images. Validation
    and test split of the data are not touched. It tells of itself what :class:`~nc_finetune.ImageData` does.

    Args:
        data: Where the images come from, how they are augmented, and how many make a batch.
        held_out: Places, in ``data.train_set``, of the images that are held out.

    Raises:
        ValueError: If nothing is held out, nothing is left, or a place is none.

    Attributes:
        held_out: These places, in rising order.
        trained: Those of the others.

    Example:
        >>> fold = TrainingFold(ImageData("sklearn:digits", image_size=16, samples_per_class=3), [0, 7])
        >>> len(fold.trained), [len(labels) for _, labels in fold.val_dataloader()]
        (28, [2])
    """

    def __init__(self, data: ImageData, held_out: Sequence[int]) -> None:
        super().__init__()
        number = len(data.images("train"))
        self.held_out = sorted({int(item) for item in held_out})
        if not self.held_out or len(self.held_out) >= number or not 0 <= self.held_out[0] <= self.held_out[-1] < number:
            raise ValueError(
                f"some of the {number} training images are held out, and some not; got {len(self.held_out)} places"
                f" {self.held_out[:3]}"
            )
        held = set(self.held_out)
        self.trained = [item for item in range(number) if item not in held]
        self.data = data
        self._progress = TrainingProgress()

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""
        return self.data.class_names

    @property
    def num_classes(self) -> int:
        """K."""
        return self.data.num_classes

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.data.multi_label

    @property
    def image_size(self) -> int:
        """Height and width of the images."""
        return self.data.image_size

    @property
    def interpolation(self) -> str:
        """Filter by which images are resized."""
        return self.data.interpolation

    @property
    def deterministic(self) -> bool | None:
        """Whether training images come out the same each time."""
        return self.data.deterministic

    @property
    def class_counts(self) -> list[int]:
        """Images of each of the K classes that are trained on."""
        images = self.data.images("train")
        found = Counter(label for item in self.trained for label in images.table.labels_of(images.indices[item]))
        return [found[label] for label in range(self.num_classes)]

    def identity(self, images: Any) -> str | None:
        """Say which pixels and labels come of some images; see :meth:`ImageData.identity`."""
        return self.data.identity(images)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of what is trained on."""
        loader = self.data.loaders_for(self.trainer).training(self.data.train_set, self.trained)
        self._progress.follow(loader)
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """Return batches of what is held out."""
        return self.eval_dataloader("val")

    def eval_dataloader(self, split: str) -> DataLoader[Any]:
        """Return batches of ``"train"`` or ``"val"``, which is held out, in rising order and without augmentation."""
        check_name("split of a fold", split, ("train", "val"))
        items = self.trained if split == "train" else self.held_out
        return self.data.loaders_for(self.trainer).some_in_order(self.data.images("train"), "train", items)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a training batch as the data do."""
        return self.data.augment(batch, self.trainer, self._progress.loader)


def training_folds(
    data: ImageData, number: int = 5, seed: int = 0, groups: Sequence[str] | None = None
) -> list[TrainingFold]:
    """Divide the training images of some data into folds, stratified, without parting groups.

    An image is held out in one fold at most: in none where its class, or of groups a class of its group, would have
    nothing left to learn from. Of a class with fewer images than folds as many folds hold one out.

    Args:
        data: The images; validation and test split are not looked at.
        number: Folds, at least 2; there are fewer where there are fewer images, or groups.
        seed: Which images are together.
        groups: The group of each training image; ``None`` is that of the data, if they have groups.

    Returns:
        The folds that hold something out.

    Raises:
        ValueError: If fewer than 2 folds are asked for, or each class has one image, or one group of images, alone.

    Warns:
        DataWarning: If there are fewer folds, or some images are held out in none.

    Example:
        >>> folds = training_folds(ImageData("sklearn:digits", image_size=16, samples_per_class=4), 3)
        >>> [len(fold.held_out) for fold in folds]
        [14, 13, 13]
    """
    images = data.images("train")
    sets = [images.table.labels_of(row) for row in images.indices]
    found = held_out_folds(images.labels, number, seed, sets, data.train_groups if groups is None else groups)
    never = len(images) - sum(fold.size for fold in found)
    said = [f"{len(found)} folds in place of {number}"] if len(found) < number else []
    said += [f"{never} of {len(images)} training images are held out in none of them"] if never else []
    if said:
        warnings.warn(f"{' and '.join(said)}, since some classes have few images, or groups", DataWarning, stacklevel=2)
    return [TrainingFold(data, fold.tolist()) for fold in found]
