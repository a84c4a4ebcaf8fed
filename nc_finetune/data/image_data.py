"""Images and labels for training, validation, testing and measuring, as one LightningDataModule."""

from __future__ import annotations

import warnings
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import lightning as L
from torch.utils.data import DataLoader

from nc_finetune.data._pixels.transforms import INTERPOLATIONS, DecodeAndResize
from nc_finetune.data.bad_images import BadImage, OnBadImage, report_bad_images
from nc_finetune.data.batch_transforms import augmented
from nc_finetune.data.columns.split_names import SPLIT_NAMES
from nc_finetune.data.labelled_images import LabelledImages, Transform
from nc_finetune.data.loaders import ImageLoaders
from nc_finetune.data.sources.file_listing import LeftOut, left_out_of
from nc_finetune.data.sources.source import load_source
from nc_finetune.data.sources.tables import Source
from nc_finetune.data.split_images import SplitImages
from nc_finetune.data.splits.content_hashes import Duplicate
from nc_finetune.data.splits.plan import SplitPlan
from nc_finetune.data.splits.stratified import splits_hash
from nc_finetune.data.splits.summary import SplitSummary
from nc_finetune.data.training_order import TrainingLoader, TrainingProgress
from nc_finetune.errors import DataWarning, check_name


class ImageData(L.LightningDataModule):
    """Labelled images from a built-in set, a local folder or the HF hub.

    Batches are ``(images, labels)``: uint8 of shape ``(N, 3, image_size, image_size)`` and int64 of shape ``(N,)``, or
    where images have several labels ``(N, K)``, 0 or 1; the model normalises. Splits are stratified and depend on
    labels and seeds alone. The test split is the source's own, or one that is the same for every ``seed``; the
    validation split is the source's own, or is taken from the train split; every class keeps an image for training.
    Images without a label are for predicting alone; a split of the source without any label is none.

    Args:
        source: ``"sklearn:digits"``, a folder (parquet, arrow, a saved HF dataset, or images in one folder a class),
            or the id of a data set on the HF hub; see :func:`~nc_finetune.data.load_source`.
        image_size: Height and width of the images in pixels.
        samples_per_class: Training images a class; ``None`` is every one that is not held out.
        train_share: Share of the training images that are kept, in ``(0, 1]``, stratified; ``None`` is all.
        seed: Which training sample is drawn, and which images are held out for validation.
        val_size: Images held out of the train split for validation, where the source has no validation split: a share
            or a number; ``None`` is 0.1, or with ``samples_per_class`` all that were not drawn. 0 holds none out, and
            those of the source's own validation split join the train split: there is nothing to validate on then, and
            rates and epochs can be chosen by folds of the training images
            (:class:`~nc_finetune.selection.CrossValidation`).
        test_size: Images held out for the test, where the source has no test split: a share or a number; 0 is none.
        max_test_images: Take so many of the source's own test split, stratified and the same ones for every ``seed``;
            ``None`` is all.
        batch_size: Images a batch.
        num_workers: Processes that decode; 0 decodes in the main process, ``None`` chooses, by the cores and by how
            long a few images take to read; see :func:`~nc_finetune.data.workers.choose_workers`.
        transform: Augmentation of each training image where it is read, uint8 tensor in and out.
        batch_transform: Augmentation of training batches on the device: takes uint8 ``(N, 3, H, W)``, returns uint8
            or floats in 0...1. It must draw numbers for each image, as :class:`~nc_finetune.data.RandomCropFlip`,
            :class:`~nc_finetune.data.PerImage` around a transform of torchvision, and kornia's do.
        interpolation: Filter for resizing.
        image_column: Column of the images in a table; ``None`` finds it.
        label_column: Column of the labels in a table; ``None`` finds it.
        on_bad_image: What becomes of images that do not decode: ``"raise"`` ends with an error that names the first;
            ``"skip"`` makes batches smaller by them, warns at the end, and lists them in ``bad_images()`` and in
            ``bad_images.csv`` beside the logs.
        fold: Hold this fold of the train split out for validation, in place of ``val_size`` and of a validation split
            of the source; from 0.
        num_folds: Number of folds.
        split_file: JSON file of the splits by the hashes of their images: read where it is there, or else written. With
            it splits stay the same when rows move, or another version draws them. One that was drawn with other
            arguments than are asked for here is refused; an argument that is ``None`` asks for nothing.
        group: Keep images of one group on one side of every split that is drawn, e.g. of a person or a plant: a column
            of the source, or a regular expression that is searched for in the name or the path of each file, whose
            first group (or whole match) is the name. Shares of classes and sizes are met as nearly as groups allow.
        balance_classes: Draw training images with replacement so that every class comes equally often.
        pixel_cache: Folder that keeps images once they are decoded and resized, for later epochs and runs; ``None``
            decodes each time. It needs ``3 * image_size ** 2`` bytes an image. An image is decoded again where its
            file, the other images of the source, or the libraries that decode are not those that it came of.

    Attributes:
        left_out: Files below the source that look as if they were meant to be read, and were not, once it is loaded.

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
        num_workers: int | None = None,
        transform: Transform | None = None,
        batch_transform: Transform | None = None,
        interpolation: str = "bicubic",
        image_column: str | None = None,
        label_column: str | None = None,
        on_bad_image: OnBadImage = "raise",
        fold: int | None = None,
        num_folds: int = 5,
        split_file: str | None = None,
        group: str | None = None,
        balance_classes: bool = False,
        pixel_cache: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("image_size", image_size), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        check_name("interpolation", interpolation, INTERPOLATIONS)
        check_name("on_bad_image", on_bad_image, get_args(OnBadImage))
        self.source = source
        self.image_size = image_size
        self.plan = SplitPlan(
            samples_per_class=samples_per_class,
            train_share=train_share,
            seed=seed,
            val_size=val_size,
            test_size=test_size,
            max_test_images=max_test_images,
            fold=fold,
            num_folds=num_folds,
            split_file=split_file,
            group=group,
        )
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.transform = transform
        self.batch_transform = batch_transform
        self.interpolation = interpolation
        self.columns = (image_column, label_column)
        self.on_bad_image: OnBadImage = on_bad_image
        self.balance_classes = balance_classes
        self.pixel_cache = pixel_cache
        self.left_out = LeftOut()
        self._used_images: SplitImages | None = None
        self._way: tuple[int, str, str, str | None] | None = None
        self._progress = TrainingProgress()
        self._chosen_workers: dict[str, int] = {}

    @cached_property
    def data(self) -> Source:
        """The source, loaded when it is first asked for; a warning names files that are no part of it."""
        found = load_source(self.source, *self.columns)
        self.left_out = left_out_of(self.source, (*found.splits.values(), *found.unlabelled.values()))
        if self.left_out.files:
            warnings.warn(f"{self.source}: {self.left_out}", DataWarning, stacklevel=2)
        return found.with_validation_in_train() if self.plan.val_size == 0 else found

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names; the label is the index."""
        return self.data.class_names

    @property
    def num_classes(self) -> int:
        """K, the number of classes in the data."""
        return len(self.class_names)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels, or none; labels are then of shape ``(N, K)``."""
        return self.data.multi_label

    @property
    def fingerprint(self) -> str:
        """Hash of the labels and images of the source."""
        return self.data.fingerprint()

    @property
    def deterministic(self) -> bool | None:
        """Whether training images come out the same each time; ``None`` where a transform, or a subclass, decides."""
        return True if type(self) is ImageData and self.transform is None and self.batch_transform is None else None

    def identity(self, images: Any) -> str | None:
        """Say which pixels and labels come of some images, without decoding one.

        Args:
            images: As ``train_set`` gives them.

        Returns:
            A text that is the same for the same pixels and labels; ``None`` where that is not known: for images of
            another source, with a transform, or of a subclass, which may change batches.
        """
        if type(self) is not ImageData or type(images) is not LabelledImages:
            return None
        return self._images.identity(images)

    @property
    def splits_hash(self) -> str:
        """Hash of which rows are in which split."""
        return splits_hash(self._images.planned.rows)

    @property
    def class_counts(self) -> list[int]:
        """Training images of each of the K classes; an image of several labels counts for each of them."""
        return self.train_set.class_counts(self.num_classes)

    @property
    def train_groups(self) -> list[str] | None:
        """The group of each training image; ``None`` where splits are not by group."""
        groups = self._images.planned.groups
        if groups is None:
            return None
        table, rows = self._images.planned.rows["train"]
        return [groups[table][row] for row in rows]

    @property
    def duplicates(self) -> list[Duplicate]:
        """Images that are in two splits, file by file; the same picture saved twice is not found."""
        return self._images.planned.duplicates

    @property
    def summary(self) -> SplitSummary:
        """Sizes of the splits, classes that they lack, groups that they share, doubled and unlabelled images."""
        return self._images.planned.summary

    def setup(self, stage: str) -> None:
        """Warn of images that are in two splits, before training."""
        if stage == "fit" and (self.trainer is None or self.trainer.is_global_zero):
            self._images.planned.warn_of_duplicates()

    @property
    def train_set(self) -> LabelledImages:
        """The training images, augmented if a transform was given.

        Raises:
            ValueError: If a group is in two splits.
        """
        return self._images.for_training(self.transform)

    @property
    def val_set(self) -> LabelledImages:
        """The validation images."""
        return self.images("val")

    @property
    def test_set(self) -> LabelledImages:
        """The test images."""
        return self.images("test")

    def prepare_data(self) -> None:
        """Load the source once, so that only one process downloads."""
        _ = self.data

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled training batches, in an order that depends on torch's seed and the epoch alone."""
        loader = self._loaders.training(self.train_set)
        self._progress.follow(loader)
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """Return validation batches."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return test batches."""
        return self.eval_dataloader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return batches of the images that have no label, or test batches where there are none."""
        unlabelled = self._images.unlabelled
        return self.eval_dataloader("test") if unlabelled is None else self._loaders.in_order(unlabelled, "predict")

    @property
    def files(self) -> list[str] | None:
        """The images of ``predict_dataloader`` that decode, where they have no label; ``None`` of a test split."""
        unlabelled = self._images.unlabelled
        return None if unlabelled is None else list(unlabelled.kept())

    def eval_dataloader(self, split: str) -> DataLoader[Any]:
        """Return batches of ``"train"``, ``"val"`` or ``"test"`` in a fixed order, without augmentation."""
        return self._loaders.in_order(self.images(split), split)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a training batch where it is: by the seed, the epoch and the batch's number alone."""
        return self.augment(batch, self.trainer, self._progress.loader)

    def augment(self, batch: Any, trainer: L.Trainer | None, loader: TrainingLoader | None) -> Any:
        """Augment a batch of a trainer that trains, by the seed, the epoch and its number in the loader."""
        if self.batch_transform is None or loader is None or not (trainer and trainer.training):
            return batch
        images, labels = batch
        seed = loader.order.batch_seed(trainer.fit_loop.epoch_loop.batch_progress.current.ready)
        return augmented(images, self.batch_transform, seed), labels

    def bad_images(self) -> list[BadImage]:
        """Return the images that were left out so far; those of other processes (DDP) are not among them."""
        return self._images.found_bad()

    @property
    def predicted_items(self) -> list[int]:
        """The places in the test split of the images of ``predict_dataloader``, without those that were left out."""
        images = self.test_set
        return [item for item, row in enumerate(images.indices) if images.bad is None or not images.bad[row]]

    def teardown(self, stage: str) -> None:
        """Say which images were left out, if any, and list them beside the logs."""
        images = self._used_images
        if images is None or images.bad is None:  # nothing has been read, or left out
            return
        path = None
        if self.trainer and self.trainer.loggers and self.trainer.log_dir:
            rank = self.trainer.global_rank
            path = Path(self.trainer.log_dir) / f"bad_images{f'_{rank}' if rank else ''}.csv"
        report_bad_images(images.found_bad(), path)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint says of the data."""
        return self._progress.state_dict(self.splits_hash)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on training on other images.

        Raises:
            ValueError: If the splits of the checkpoint are others.
        """
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self._progress.load_state_dict(state_dict, self.splits_hash)

    def images(self, split: str) -> LabelledImages:
        """Return the images of ``"train"``, ``"val"`` or ``"test"``, without augmentation."""
        check_name("split", split, SPLIT_NAMES)
        return self._images.of(split)

    @property
    def _images(self) -> SplitImages:
        """The images of the splits, read as the attributes say now; the splits stay those of the first use."""
        way = (self.image_size, self.interpolation, self.on_bad_image, self.pixel_cache)
        if self._used_images is None or self._way != way:
            decode, skip = DecodeAndResize(self.image_size, self.interpolation), self.on_bad_image == "skip"
            folder = None if self.pixel_cache is None else Path(self.pixel_cache).expanduser()
            if self._used_images is None:
                self._used_images = SplitImages(self.data, self.plan, decode, skip=skip, pixel_cache=folder)
            else:
                self._used_images.read_by(decode, skip, folder)
            self._way = way
        return self._used_images

    @property
    def _loaders(self) -> ImageLoaders:
        return self.loaders_for(self.trainer)

    def loaders_for(self, trainer: L.Trainer | None) -> ImageLoaders:
        """Return what builds loaders for the processes of a trainer."""
        return ImageLoaders(
            trainer=trainer,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            balance_classes=self.balance_classes,
            chosen=self._chosen_workers,
        )
