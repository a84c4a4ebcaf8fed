"""Compute what a frozen prefix gives once a sample, as a Lightning callback."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from nc_finetune.backbones import SplitBackbone, SplitError
from nc_finetune.cache import CachedRows
from nc_finetune.callbacks.collapse_callback import CollapseCallback, Split
from nc_finetune.callbacks.evaluation import evaluating, random_state_kept, refuse_sharded
from nc_finetune.callbacks.prefix_fill import CannotKeepError, PrefixFill, read_share
from nc_finetune.data import ImageData, LabelledImages
from nc_finetune.data.labelled_images import Transform
from nc_finetune.errors import unknown_name

_LOOKED_AT = 4
GIGABYTE = 1e9


class PrefixCache(L.Callback):
    """Run the frozen part below the tuned block once a sample, keep what it gives, and train from there.

    ``Trainer(callbacks=[PrefixCache()])`` around an :class:`~nc_finetune.ImageClassifier`: losses are those of a run
    without it, to the last bit where the kernels give the same for any grouping of a batch. Validation data are kept,
    too, unless another callback measures layers on them, and so are test data where runs share a folder and ``splits``
    names them. A probe keeps the penultimate feature.

    Nothing is kept, and training goes on as it would without, with one warning that says why, where there is no frozen
    prefix (full fine-tuning), the network cannot be cut, the data have no length or come in dictionaries, what must be
    kept is larger than the budget, or the folder is not writable or full.

    Under DDP each process computes its share; all read the shares of all, so that the folder must be one that they
    share. Without one it is a temporary folder.

    Args:
        folder: Where outputs are kept for later runs, which share them if prefix, images, image transform and cut are
            the same; ``None`` keeps them in memory for this run.
        dtype: ``"bfloat16"`` halves the room and rounds what is kept; ``None`` keeps it as it is.
        budget_gb: The most to keep, in gigabytes of 10^9 bytes, for each split; ``None`` is half of the memory, or of
            the room in the folder, that is free.
        views: Augmented views of each training image to keep where the training data have a random transform; epoch
            after epoch takes the next.
        splits: What is kept: any of ``"train"``, ``"val"`` and ``"test"``; a run that is tested once gains nothing by
            the last one unless an earlier run has left it in the folder.

    Raises:
        ValueError: For an argument out of range; at the start of the fit if the training data draw random numbers and
            ``views`` is not given.
        TypeError: At the start of the fit, if the module cannot be split.

    Example:
        >>> PrefixCache(budget_gb=2).stored_bytes
        {}

    Attributes:
        stored_bytes: Bytes that are kept, by split.
        fill_seconds: Seconds that they took to compute or to find, by split.
    """

    def __init__(
        self,
        folder: str | None = None,
        *,
        dtype: Literal["bfloat16"] | None = None,
        budget_gb: float | None = None,
        views: int | None = None,
        splits: Sequence[Split] = ("train", "val"),
    ) -> None:
        for name, value in (("budget_gb", budget_gb), ("views", views)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if dtype not in (None, "bfloat16"):
            raise ValueError(f"dtype must be 'bfloat16', or None to keep outputs as they are, got {dtype!r}")
        for split in splits:
            if split not in get_args(Split):
                raise unknown_name("split", split, get_args(Split))
        self.folder = folder
        self.dtype = dtype
        self.budget_gb = budget_gb
        self.views = views
        self.splits = tuple(splits)
        self.stored_bytes: dict[str, int] = {}
        self.fill_seconds: dict[str, float] = {}
        self._installed: list[CachedRows] = []
        self._train_rows: CachedRows | None = None
        self._contexts = ExitStack()

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse modules that do not say where they can be cut, and networks in shares."""
        refuse_sharded(trainer, type(self).__name__)
        if not hasattr(pl_module, "split_prefix"):
            raise TypeError(f"PrefixCache needs an ImageClassifier, got {type(pl_module).__name__}")

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Cut the network and keep the training split."""
        self.stored_bytes, self.fill_seconds = {}, {}
        try:
            loader = _check_usable(trainer, pl_module, trainer.fit_loop)
            with random_state_kept():
                self._refuse_random(trainer, loader)
            self._cut(trainer, pl_module, loader)
        except SplitError as error:
            self._go_without(trainer, str(error))
        else:
            if "train" in self.splits:
                self._train_rows = self._keep(trainer, pl_module, trainer.fit_loop, "train")
                self._take_view(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Take the next view."""
        self._take_view(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Keep the validation split when it is first needed."""
        loop = trainer.fit_loop.epoch_loop.val_loop
        split: SplitBackbone | None = pl_module.split
        if trainer.state.fn != "fit" or trainer.sanity_checking or split is None or "val" in self.fill_seconds:
            return
        if self._can_keep(trainer, loop, "val"):
            self._keep(trainer, pl_module, loop, "val")

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Cut the network and keep the test split, where that was asked for and there is a frozen prefix."""
        self.stored_bytes.pop("test", None)
        self.fill_seconds.pop("test", None)
        if not self._can_keep(trainer, trainer.test_loop, "test"):
            return
        try:
            self._cut(trainer, pl_module, _check_usable(trainer, pl_module, trainer.test_loop))
        except SplitError as error:
            self._go_without(trainer, str(error))
        else:
            self._keep(trainer, pl_module, trainer.test_loop, "test")

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Give the loaders back and let go of what was kept."""
        for rows in self._installed:
            rows.remove()
        self._installed.clear()
        self._train_rows = pl_module.split = None
        self._contexts.close()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Do so, too, where the fit ends early."""
        self.teardown(trainer, pl_module, "fit")

    def _take_view(self, trainer: L.Trainer) -> None:
        if self._train_rows is not None:
            self._train_rows.epoch = trainer.current_epoch

    def _refuse_random(self, trainer: L.Trainer, loader: DataLoader[Any]) -> None:
        if self.views is None and (_batch_transform(trainer) or PrefixFill.is_random(loader, _LOOKED_AT)):
            raise ValueError(
                "the training images differ each time that they are read, so that a cache would freeze their random"
                " transform; keep several views of each image with views=8, or leave PrefixCache out"
            )

    def _cut(self, trainer: L.Trainer, pl_module: Any, loader: DataLoader[Any]) -> None:
        with evaluating(trainer, pl_module):
            pl_module.split = pl_module.split_prefix(_first_images(trainer, loader))

    def _can_keep(self, trainer: L.Trainer, loop: Any, split: str) -> bool:
        """Tell whether an evaluation may read outputs of the prefix: nobody else looks at its images or layers."""
        loader = _only_loader(loop)
        if split not in self.splits or loader is None or _is_measured(trainer, split):
            return False
        with random_state_kept():
            return not PrefixFill.is_random(loader, _LOOKED_AT)

    def _keep(self, trainer: L.Trainer, pl_module: Any, loop: Any, split: str) -> CachedRows | None:
        """Fill or find the cache of a split, and let its loop read from there."""
        loader = loop._combined_loader.flattened[0]
        start = time.perf_counter()
        fill = PrefixFill(
            trainer,
            pl_module,
            loader,
            folder=self._shared_folder(trainer),
            dtype=None if self.dtype is None else getattr(torch, self.dtype),
            budget=None if self.budget_gb is None else int(self.budget_gb * GIGABYTE),
            views=self.views if split == "train" else None,
            batch_transform=_batch_transform(trainer) if split == "train" else None,
            identity=_identity(trainer, loader) if split != "train" or self.views is None else None,
        )
        self.fill_seconds[split] = 0.0
        try:
            rows = fill.run()
        except (CannotKeepError, OSError) as error:
            self._go_without(trainer, f"{split} split: {error}")
            return None
        self.fill_seconds[split] = time.perf_counter() - start
        self.stored_bytes[split] = sum(store.nbytes for store in rows.stores)
        rank_zero_info(
            f"PrefixCache: {len(rows)} {split} images before {pl_module.split.cut!r} in"
            f" {self.stored_bytes[split] / GIGABYTE:.3g} GB, {self.fill_seconds[split]:.1f} s"
        )
        rows.install()
        self._installed.append(rows)
        with random_state_kept():  # the loop has drawn its numbers for this iterator already
            iter(loop._data_fetcher)
        return rows

    def _shared_folder(self, trainer: L.Trainer) -> Path | None:
        if self.folder is not None or trainer.world_size == 1:
            return None if self.folder is None else Path(self.folder).expanduser()
        temporary = ""
        if trainer.is_global_zero:
            temporary = self._contexts.enter_context(tempfile.TemporaryDirectory(prefix="nc-finetune-"))
        return Path(trainer.strategy.broadcast(temporary))

    def _go_without(self, trainer: L.Trainer, reason: str) -> None:
        if trainer.is_global_zero:
            warnings.warn(f"PrefixCache: {reason}; training goes on without it", stacklevel=2)


def _only_loader(loop: Any) -> DataLoader[Any] | None:
    """Return the loader of a loop, if there is one only and its samples have numbers."""
    found = [] if loop._combined_loader is None else loop._combined_loader.flattened
    loader = found[0] if len(found) == 1 else None
    usable = isinstance(loader, DataLoader) and loader.batch_sampler is not None and hasattr(loader.dataset, "__len__")
    return loader if usable else None


def _check_usable(trainer: Any, pl_module: Any, loop: Any) -> DataLoader[Any]:
    """Return the loader of a loop.

    Raises:
        SplitError: If what it gives cannot be kept.
    """
    loader = _only_loader(loop)
    if loader is None:
        raise SplitError("the training data must come in batches of one DataLoader, over a dataset that has a length")
    if loop is trainer.fit_loop and trainer.reload_dataloaders_every_n_epochs:
        raise SplitError("training data that are loaded anew every few epochs cannot be kept")
    datamodule = getattr(trainer, "datamodule", None)
    # What ImageData does to a batch is known: its batch_transform.
    parent = ImageData if isinstance(datamodule, ImageData) else L.LightningDataModule
    holders = [(L.LightningModule, pl_module), *([(parent, datamodule)] if datamodule else [])]
    if any(is_overridden("on_after_batch_transfer", holder, parent) for parent, holder in holders):
        raise SplitError("batches are changed in on_after_batch_transfer; do so in the dataset")
    return loader


def _batch_transform(trainer: Any) -> Transform | None:
    datamodule = getattr(trainer, "datamodule", None)
    return datamodule.batch_transform if isinstance(datamodule, ImageData) else None


def _identity(trainer: Any, loader: DataLoader[Any]) -> str | None:
    """Say which images a loader gives, where its datamodule knows without decoding them."""
    datamodule, images = getattr(trainer, "datamodule", None), loader.dataset
    if not isinstance(datamodule, ImageData) or type(images) is not LabelledImages:
        return None
    return datamodule.identity(images)


def _first_images(trainer: L.Trainer, loader: DataLoader[Any]) -> Any:
    batch = next(read_share(loader, range(min(_LOOKED_AT, len(loader.dataset)))), None)  # type: ignore[arg-type]
    if batch is None:
        raise SplitError("the first images do not decode")
    images, transform = trainer.strategy.batch_to_device(batch)[0], _batch_transform(trainer)
    return images if transform is None or trainer.testing else transform(images)


def _is_measured(trainer: L.Trainer, split: str) -> bool:
    callbacks: Iterator[Any] = iter(trainer.callbacks)  # type: ignore[attr-defined]
    return any(isinstance(callback, CollapseCallback) and split in callback.splits for callback in callbacks)
