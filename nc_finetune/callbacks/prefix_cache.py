"""Compute what a frozen prefix gives once a sample, as a Lightning callback."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, IterableDataset

from nc_finetune._common.data_facts import told_by
from nc_finetune._common.lightning_internals import current_datamodule, fetch_anew, loaders_in_use
from nc_finetune.backbones import FrozenPrefix, SplitError
from nc_finetune.cache import CachedRows, row_number
from nc_finetune.callbacks._collapse.callback import CollapseCallback, Split
from nc_finetune.callbacks._prefix.fill import CannotKeepError, PrefixFill, read_share
from nc_finetune.data.batch_transforms import numbers_as_they_come
from nc_finetune.data.labelled_images import Drawn
from nc_finetune.errors import check_name
from nc_finetune.passes.batches import HOOKS, prepare_batch
from nc_finetune.passes.evaluation import evaluating, random_state_kept, refuse_sharded
from nc_finetune.passes.repeats import Witness, what_differs

_LOOKED_AT = 4
GIGABYTE = 1e9


class PrefixCache(L.Callback):
    """Run the frozen part below the tuned block once a sample, keep what it gives, and train from there.

    ``Trainer(callbacks=[PrefixCache()])`` around an :class:`~nc_finetune.ImageClassifier`: losses are those of a run
    without it, to the last bit where the kernels give the same for any grouping of a batch. Validation data are kept,
    too, unless another callback measures layers on them, and so are test data where runs share a folder and ``splits``
    names them. A probe keeps the penultimate feature.

    What is kept are the images as the network sees them: after collate_fn, and after the transfer hooks of datamodule
    or module. Nothing is kept, and training goes on as it would without, with one warning that says why, where there is
    no frozen prefix (full fine-tuning), the network cannot be cut, samples have no numbers, what must be kept is larger
    than the budget, or the folder is not writable or full; and where images come out otherwise when they are read
    again, be it by the dataset, by collate_fn or by hooks, and ``views`` is not given. Some are read again in epochs
    1, 2, 4, 8 and so on, and if they have changed the cache is given up. A datamodule with ``deterministic = True`` is
    believed; see :class:`~nc_finetune.data.TellsOfData`.

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
        ValueError: For an argument out of range.
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
            check_name("split", split, get_args(Split))
        self.folder = folder
        self.dtype = dtype
        self.budget_gb = budget_gb
        self.views = views
        self.splits = tuple(splits)
        self.stored_bytes: dict[str, int] = {}
        self.fill_seconds: dict[str, float] = {}
        self._installed: list[_Kept] = []
        self._contexts = ExitStack()

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse modules that do not say where they can be cut, and networks in shares."""
        refuse_sharded(trainer, type(self).__name__)
        if not all(hasattr(pl_module, name) for name in ("backbone", "method", "split")):
            raise TypeError(f"PrefixCache needs an ImageClassifier, got {type(pl_module).__name__}")

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Cut the network and keep the training split."""
        self.stored_bytes, self.fill_seconds = {}, {}
        try:
            loaders = _usable_loaders(trainer, trainer.fit_loop)
            if self.views is None and (reason := _randomness(trainer, pl_module, loaders[0], training=True)):
                raise SplitError(
                    f"{reason}, so that a cache would freeze what is random in them (keep several views of each image"
                    " by views=8)"
                )
            self._cut(trainer, pl_module, loaders[0], training=True)
        except SplitError as error:
            self._go_without(trainer, str(error))
        else:
            if "train" in self.splits:
                self._keep(trainer, pl_module, trainer.fit_loop, "train")
                self._take_view(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Take the next view, and look whether images are still the same."""
        self._look_again(trainer, pl_module, "train")
        self._take_view(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Keep the validation split when it is first needed."""
        loop = trainer.fit_loop.epoch_loop.val_loop
        if trainer.state.fn != "fit" or trainer.sanity_checking or pl_module.split is None:
            return
        if "val" in self.fill_seconds:
            if self._look_again(trainer, pl_module, "val"):
                _begin_again(loop)
        elif self._can_keep(trainer, loop, "val"):
            self._keep(trainer, pl_module, loop, "val")

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Cut the network and keep the test split, where that was asked for and there is a frozen prefix."""
        self.stored_bytes.pop("test", None)
        self.fill_seconds.pop("test", None)
        if not self._can_keep(trainer, trainer.test_loop, "test"):
            return
        try:
            self._cut(trainer, pl_module, _usable_loaders(trainer, trainer.test_loop)[0])
        except SplitError as error:
            self._go_without(trainer, str(error))
        else:
            self._keep(trainer, pl_module, trainer.test_loop, "test")

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Give the loaders back and let go of what was kept."""
        for kept in self._installed:
            kept.rows.remove()
        self._installed.clear()
        pl_module.split = None
        self._contexts.close()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Do so, too, where the fit ends early."""
        self.teardown(trainer, pl_module, "fit")

    def _take_view(self, trainer: L.Trainer) -> None:
        for kept in self._installed:
            if kept.split == "train":
                kept.rows.epoch = trainer.current_epoch

    def _cut(self, trainer: L.Trainer, pl_module: Any, loader: DataLoader[Any], training: bool = False) -> None:
        images = _first_images(trainer, pl_module, loader, training)
        with evaluating(trainer, pl_module):
            pl_module.split = FrozenPrefix(pl_module, images)

    def _can_keep(self, trainer: L.Trainer, loop: Any, split: str) -> bool:
        """Tell whether an evaluation may read outputs of the prefix: nobody else looks at its images or layers."""
        return split in self.splits and loaders_in_use(loop) is not None and not _is_measured(trainer, split)

    def _keep(self, trainer: L.Trainer, pl_module: Any, loop: Any, split: str) -> None:
        """Fill or find the cache of each loader of a split, and let its loop read from there."""
        self.fill_seconds[split] = 0.0
        try:
            loaders = _usable_loaders(trainer, loop)
        except SplitError as error:
            self._go_without(trainer, f"{split} split: {error}")
            return
        before = len(self._installed)
        for number, loader in enumerate(loaders):
            self._keep_loader(trainer, pl_module, loader, split, number)
        if len(self._installed) > before:
            _begin_again(loop)

    def _keep_loader(
        self, trainer: L.Trainer, pl_module: Any, loader: DataLoader[Any], split: str, number: int
    ) -> None:
        start, training = time.perf_counter(), split == "train"
        drawn = self.views if training else None
        try:
            if not training and (reason := _randomness(trainer, pl_module, loader, number=number)):
                raise SplitError(reason)
            rows = PrefixFill(
                trainer,
                pl_module,
                loader,
                folder=self._shared_folder(trainer),
                dtype=None if self.dtype is None else getattr(torch, self.dtype),
                budget=None if self.budget_gb is None else int(self.budget_gb * GIGABYTE),
                number=number,
                training=training,
                views=drawn,
                identity=None if drawn else _identity(trainer, pl_module, loader),
            ).run()
        except (CannotKeepError, SplitError, OSError) as error:
            self._go_without(trainer, f"{split} split: {error}")
            return
        witness = None
        if drawn is None and not told_by(trainer).deterministic:
            witness = Witness(rows.uncached, number, training)
            witness.looks_different(trainer, pl_module)
        rows.row_of = _row_of
        rows.install()
        self._installed.append(_Kept(split, rows, witness))
        self.fill_seconds[split] += time.perf_counter() - start
        self.stored_bytes[split] = self.stored_bytes.get(split, 0) + sum(store.nbytes for store in rows.stores)
        rank_zero_info(
            f"PrefixCache: {len(rows)} {split} images before {pl_module.split.cut!r} in"
            f" {self.stored_bytes[split] / GIGABYTE:.3g} GB, {self.fill_seconds[split]:.1f} s"
        )

    def _look_again(self, trainer: L.Trainer, pl_module: Any, split: str) -> bool:
        """Give up what was kept of images that have become others; look in epochs 1, 2, 4, 8 and so on."""
        epoch, given_up = trainer.current_epoch, False
        if epoch & (epoch - 1) or not epoch:
            return False
        for kept in [kept for kept in self._installed if kept.split == split and kept.witness is not None]:
            changed = kept.witness is not None and kept.witness.looks_different(trainer, pl_module)
            if not trainer.strategy.reduce_boolean_decision(changed, all=False):
                continue
            kept.rows.remove()
            self._installed.remove(kept)
            self.stored_bytes.pop(split, None)
            given_up = True
            self._go_without(
                trainer,
                f"in epoch {epoch} some {split} images have become others than those whose outputs were kept and used"
                " until now, so that something random, or files, had been frozen",
            )
        return given_up

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


class _Kept(NamedTuple):
    """What stands in place of a loader's images, and what these looked like, where that may change."""

    split: str
    rows: CachedRows
    witness: Witness | None


def _usable_loaders(trainer: Any, loop: Any) -> list[DataLoader[Any]]:
    """Return the loaders of a loop.

    Raises:
        SplitError: If what they give cannot be kept.
    """
    found = loaders_in_use(loop) or []
    training = loop is trainer.fit_loop
    if not found or (training and len(found) > 1) or not all(map(_has_numbered_samples, found)):
        kind = "the training data must come in batches of one DataLoader" if training else "data must come in batches"
        raise SplitError(f"{kind}, over a dataset whose samples have numbers")
    if training and trainer.reload_dataloaders_every_n_epochs:
        raise SplitError("training data that are loaded anew every few epochs cannot be kept")
    return found


def _has_numbered_samples(loader: Any) -> bool:
    return (
        isinstance(loader, DataLoader)
        and loader.batch_sampler is not None
        and hasattr(loader.dataset, "__len__")
        and not isinstance(loader.dataset, IterableDataset)
    )


def _randomness(
    trainer: L.Trainer, pl_module: Any, loader: DataLoader[Any], *, training: bool = False, number: int = 0
) -> str | None:
    """Say what makes images others each time, on any process.

    Raises:
        SplitError: If they cannot be read by their numbers.
    """
    if told_by(trainer).deterministic:
        return None
    try:
        reason = what_differs(trainer, pl_module, loader, training=training, number=number)
    except Exception as error:  # of the data, or of hooks; training meets it again if it is no matter of the cache
        raise SplitError(f"samples cannot be read by their numbers ({type(error).__name__}: {error})") from error
    agreed = trainer.strategy.reduce_boolean_decision(reason is not None, all=False)
    return (reason or "another process read other images the second time") if agreed else None


def _begin_again(loop: Any) -> None:
    """Let a loop take its batches from what its loaders give now, with the random numbers that it has drawn already."""
    generators = {
        holder.generator: holder.generator.get_state()
        for loader in loaders_in_use(loop) or ()
        for holder in (loader, loader.sampler)
        if isinstance(getattr(holder, "generator", None), torch.Generator)
    }
    with random_state_kept():
        fetch_anew(loop)
    for generator, state in generators.items():
        generator.set_state(state)


def _row_of(item: Any) -> int | None:
    return item.item if isinstance(item, Drawn) else row_number(item)


def _identity(trainer: Any, pl_module: Any, loader: DataLoader[Any]) -> str | None:
    """Say which images a loader gives, where its datamodule knows without decoding them and the module changes none."""
    datamodule = current_datamodule(trainer)
    own = any(is_overridden(hook, pl_module) and not is_overridden(hook, datamodule) for hook in HOOKS)
    return None if datamodule is None or own else told_by(trainer).identity(loader.dataset)


def _first_images(trainer: L.Trainer, pl_module: Any, loader: DataLoader[Any], training: bool) -> Any:
    with evaluating(trainer, pl_module, training=training), numbers_as_they_come():
        batch = next(read_share(loader, range(min(_LOOKED_AT, len(loader.dataset)))), None)  # type: ignore[arg-type]
        if batch is None:
            raise SplitError("the first images do not decode")
        return prepare_batch(trainer, pl_module, batch)[0]


def _is_measured(trainer: L.Trainer, split: str) -> bool:
    callbacks: Iterator[Any] = iter(trainer.callbacks)  # type: ignore[attr-defined]
    return any(isinstance(callback, CollapseCallback) and split in callback.splits for callback in callbacks)
