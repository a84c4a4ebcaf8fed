"""Images and labels for training, validation, testing and measuring, as one LightningDataModule."""

from __future__ import annotations

import math
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from nc_finetune.data._pixels.file_stamps import FileStamps
from nc_finetune.data._pixels.pixel_store import PixelStore
from nc_finetune.data._pixels.transforms import INTERPOLATIONS, DecodeAndResize
from nc_finetune.data.batch_transforms import come_as_they_are, numbers_drawn_from
from nc_finetune.data.columns.split_names import SPLIT_NAMES
from nc_finetune.data.content_hashes import Duplicate
from nc_finetune.data.labelled_images import (
    BadImage,
    LabelledImages,
    OnBadImage,
    SkippingLoader,
    Transform,
    bad_images,
    collate,
    pixels_identity,
    shared_flags,
    write_bad_images,
)
from nc_finetune.data.sources.left_out import LeftOut, left_out_of
from nc_finetune.data.sources.source import Source, load_source
from nc_finetune.data.splits.file import SplitRows
from nc_finetune.data.splits.plan import SplitPlan
from nc_finetune.data.splits.stratified import splits_hash
from nc_finetune.data.splits.summary import PlannedSplits, SplitSummary
from nc_finetune.data.training_order import FixedOrder, OwnShare, TrainingLoader, TrainingOrder, balancing_weights
from nc_finetune.data.unlabelled_folder import UnlabelledImages
from nc_finetune.data.workers import choose_workers
from nc_finetune.errors import DataWarning, unknown_name


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
            or a number; ``None`` is 0.1, or with ``samples_per_class`` all that were not drawn.
        test_size: Images held out for the test, where the source has no test split: a share or a number.
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
        if interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
        if on_bad_image not in get_args(OnBadImage):
            raise unknown_name("on_bad_image", on_bad_image, get_args(OnBadImage))
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
        self._training: TrainingLoader | None = None
        self._resumed: dict[str, int] | None = None
        self._chosen_workers: dict[str, int] = {}

    @cached_property
    def data(self) -> Source:
        """The source, loaded when it is first asked for; a warning names files that are no part of it."""
        found = load_source(self.source, *self.columns)
        self.left_out = left_out_of(self.source, found)
        if self.left_out.files:
            warnings.warn(f"{self.source}: {self.left_out}", DataWarning, stacklevel=2)
        return found

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

    @cached_property
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
        tables = [name for name, table in self.data.splits.items() if table is images.table]
        return pixels_identity(images, f"{self.fingerprint} {tables[0]}") if tables else None

    @property
    def splits_hash(self) -> str:
        """Hash of which rows are in which split."""
        return splits_hash(self._split_rows)

    @property
    def class_counts(self) -> list[int]:
        """Training images of each of the K classes; an image of several labels counts for each of them."""
        return self.train_set.class_counts(self.num_classes)

    @property
    def duplicates(self) -> list[Duplicate]:
        """Images that are in two splits, file by file; the same picture saved twice is not found."""
        return self._planned.duplicates

    @property
    def summary(self) -> SplitSummary:
        """Sizes of the splits, classes that they lack, groups that they share, doubled and unlabelled images."""
        return self._planned.summary

    def setup(self, stage: str) -> None:
        """Warn of images that are in two splits, before training."""
        if stage != "fit" or not self.duplicates or (self.trainer and not self.trainer.is_global_zero):
            return
        first = "\n".join(f"  {found}" for found in self.duplicates[:3])
        warnings.warn(f"{len(self.duplicates)} images are in two splits, e.g.\n{first}", DataWarning, stacklevel=2)

    @property
    def train_set(self) -> LabelledImages:
        """The training images, augmented if a transform was given.

        Raises:
            ValueError: If a group is in two splits.
        """
        self._planned.refuse_shared_groups()
        return self._images("train", training=True)

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

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled training batches, in an order that depends on torch's seed and the epoch alone."""
        images = self.train_set
        order = self._order_of(images)
        loader = TrainingLoader(images, sampler=order, generator=torch.Generator(), **self._loading(images, "training"))
        loader.limit = lambda: getattr(self.trainer, "num_training_batches", math.inf)
        if self._training is not None and self._training.waits:  # loaded anew before what was resumed has gone on
            self._resumed = self._training.state_dict()
        if self._resumed is not None:
            loader.load_state_dict(self._resumed)
            self._resumed = None
        self._training = loader
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """Return validation batches."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return test batches."""
        return self.eval_dataloader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return batches of the images that have no label, or test batches where there are none."""
        if self._unlabelled is None:
            return self.eval_dataloader("test")
        (ranks, rank), loading = self._ranks, self._loading(self._unlabelled, "predict")
        sampler = OwnShare(self._unlabelled, num_replicas=ranks, rank=rank, shuffle=False)
        return SkippingLoader(self._unlabelled, sampler=sampler if ranks > 1 else None, **loading)

    @cached_property
    def _unlabelled(self) -> UnlabelledImages | None:
        tables = self.data.unlabelled.values()
        decode = DecodeAndResize(self.image_size, self.interpolation)
        return UnlabelledImages.of_tables(tables, decode, self.on_bad_image == "skip") if tables else None

    @property
    def files(self) -> list[str] | None:
        """The images of ``predict_dataloader`` that decode, where they have no label; ``None`` of a test split."""
        if self._unlabelled is None:
            return None
        names, bad = self._unlabelled.names(), self._unlabelled.is_bad()
        return [name for name, is_bad in zip(names, bad, strict=True) if not is_bad]

    def eval_dataloader(self, split: str) -> DataLoader[Any]:
        """Return batches of ``"train"``, ``"val"`` or ``"test"`` in a fixed order, without augmentation."""
        images, (ranks, rank) = self._images(split), self._ranks
        # Each image on one process alone: repeated ones would count twice.
        sampler: Any = OwnShare(images, num_replicas=ranks, rank=rank, shuffle=False) if ranks > 1 else None
        if split == "train" and self._overfits:
            sampler = self._order_of(images)  # of which the first batches are those that are trained on
        return SkippingLoader(images, sampler=sampler, **self._loading(images, split))

    def _order_of(self, images: LabelledImages) -> TrainingOrder:
        (ranks, rank), kind = self._ranks, FixedOrder if self._overfits else TrainingOrder
        weights = balancing_weights(images.labels) if self.balance_classes else None
        seed = torch.initial_seed()
        if self.trainer is not None and ranks > 1:  # all share one order, also where nobody has set a seed
            seed = self.trainer.strategy.broadcast(seed)
        return kind(images, seed=seed, ranks=ranks, rank=rank, weights=weights)

    @property
    def _overfits(self) -> bool:
        return bool(getattr(self.trainer, "overfit_batches", 0))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a training batch where it is: by the seed, the epoch and the batch's number alone."""
        if self.batch_transform is None or self._training is None or not (self.trainer and self.trainer.training):
            return batch
        images, labels = batch
        if come_as_they_are():
            return self.batch_transform(images), labels
        (ranks, rank), number = self._ranks, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        order: Any = self._training.sampler
        # Downwards: upwards are the seeds of single images.
        seed = (order.epoch_seed - 1 - rank - ranks * number) % 2**63
        with numbers_drawn_from(seed, images.device):
            return self.batch_transform(images), labels

    def bad_images(self) -> list[BadImage]:
        """Return the images that were left out so far; those of other processes (DDP) are not among them."""
        decode = DecodeAndResize(self.image_size, self.interpolation)
        tables = self.data.splits
        return [bad for name, flags in self._bad.items() for bad in bad_images(name, tables[name], flags, decode)]

    @property
    def predicted_items(self) -> list[int]:
        """The places in the test split of the images of ``predict_dataloader``, without those that were left out."""
        images = self.test_set
        return [item for item, row in enumerate(images.indices) if images.bad is None or not images.bad[row]]

    def teardown(self, stage: str) -> None:
        """Say which images were left out, if any, and list them beside the logs."""
        found = self.bad_images() if self._bad_flags_used else []
        if not found:
            return
        first = "\n".join(f"  {bad}" for bad in found[:3])
        warnings.warn(f"left out {len(found)} images that do not decode:\n{first}", DataWarning, stacklevel=2)
        if self.trainer and self.trainer.loggers and self.trainer.log_dir:
            rank = self.trainer.global_rank
            write_bad_images(Path(self.trainer.log_dir) / f"bad_images{f'_{rank}' if rank else ''}.csv", found)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint says of the data."""
        # Lightning saves the loader's state, too, but loads it too late where the schedule asks for its length.
        return {"splits_hash": self.splits_hash, "training": self._training and self._training.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on training on other images.

        Raises:
            ValueError: If the splits of the checkpoint are others.
        """
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        if state_dict.get("splits_hash") != self.splits_hash:
            raise ValueError(
                f"the checkpoint was trained on other splits (hash {state_dict.get('splits_hash')}, here"
                f" {self.splits_hash}); resume with the same source, seed and sizes"
            )
        self._resumed = state_dict["training"]

    @property
    def _ranks(self) -> tuple[int, int]:
        """Number of processes, and which this is."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _loading(self, images: LabelledImages | UnlabelledImages, name: str) -> dict[str, Any]:
        workers = self.num_workers
        if workers is None:
            if name not in self._chosen_workers:
                self._chosen_workers[name] = choose_workers(images, self.trainer.num_devices if self.trainer else 1)
            workers = self._chosen_workers[name]
        return {
            "batch_size": self.batch_size,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": self._on_gpu,
            "collate_fn": collate,
        }

    @property
    def _on_gpu(self) -> bool:
        """Whether batches go to a GPU: memory pinned for nothing is memory that the system cannot move."""
        if self.trainer is None:
            return torch.cuda.is_available()
        return self.trainer.strategy.root_device.type == "cuda"

    @cached_property
    def _bad(self) -> dict[str, Tensor]:
        """One flag a row of the source, which every process that decodes sees."""
        if self.on_bad_image == "raise":
            return {}
        sizes = {name: len(table.labels) for name, table in self.data.splits.items()}
        return {name: shared_flags(size) for name, size in sizes.items()}

    @cached_property
    def _pixels(self) -> dict[str, PixelStore]:
        if self.pixel_cache is None:
            return {}
        folder = Path(self.pixel_cache).expanduser()
        identity = f"{self.fingerprint} {DecodeAndResize(self.image_size, self.interpolation).identity}"
        found = {}
        for name, table in self.data.splits.items():
            stamp = FileStamps(table.rows, table.image_column)
            found[name] = PixelStore(folder, f"{identity} {name}", len(table.labels), self.image_size, stamp)
        return found

    @property
    def _bad_flags_used(self) -> bool:
        return "_bad" in self.__dict__ and any(bool(flags.any()) for flags in self._bad.values())

    def images(self, split: str) -> LabelledImages:
        """Return the images of ``"train"``, ``"val"`` or ``"test"``, without augmentation."""
        return self._images(split)

    def _images(self, split: str, training: bool = False) -> LabelledImages:
        if split not in SPLIT_NAMES:
            raise unknown_name("split", split, SPLIT_NAMES)
        table, indices = self._split_rows[split]
        return LabelledImages(
            self.data.splits[table],
            indices,
            DecodeAndResize(self.image_size, self.interpolation),
            self.transform if training else None,
            bad=self._bad.get(table),
            fill=training,
            num_classes=self.num_classes,
            pixels=self._pixels.get(table),
        )

    @cached_property
    def _planned(self) -> PlannedSplits:
        return PlannedSplits(self.data, self.plan)

    @property
    def _split_rows(self) -> SplitRows:
        """In which table of the source each split is, and in which of its rows."""
        return self._planned.rows
