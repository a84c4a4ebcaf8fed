"""Compute what a frozen prefix gives once a sample, as a Lightning callback."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from nc_finetune._common.data_facts import told_by
from nc_finetune._common.lightning_internals import loaders_in_use
from nc_finetune.backbones import FrozenPrefix, SplitError
from nc_finetune.cache import CachedRows
from nc_finetune.callbacks._collapse.callback import Split
from nc_finetune.callbacks._prefix.fill import CannotKeepError, PrefixFill
from nc_finetune.callbacks._prefix.loaders import (
    begin_again,
    first_images,
    identity,
    is_measured,
    randomness,
    usable_loaders,
)
from nc_finetune.errors import check_name
from nc_finetune.passes.evaluation import evaluating, refuse_sharded
from nc_finetune.passes.repeats import Witness

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
        with self._or_without(trainer):
            loader = usable_loaders(trainer, trainer.fit_loop)[0]
            if self.views is None and (reason := randomness(trainer, pl_module, loader, training=True)):
                raise SplitError(
                    f"{reason}, so that a cache would freeze what is random in them (keep several views of each image"
                    " by views=8)"
                )
            self._cut(trainer, pl_module, loader, training=True)
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
                begin_again(loop)
        elif self._can_keep(trainer, loop, "val"):
            self._keep(trainer, pl_module, loop, "val")

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Cut the network and keep the test split, where that was asked for and there is a frozen prefix."""
        self.stored_bytes.pop("test", None)
        self.fill_seconds.pop("test", None)
        if self._can_keep(trainer, trainer.test_loop, "test"):
            with self._or_without(trainer):
                self._cut(trainer, pl_module, usable_loaders(trainer, trainer.test_loop)[0])
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
        images = first_images(trainer, pl_module, loader, training)
        with evaluating(trainer, pl_module):
            pl_module.split = FrozenPrefix(pl_module, images)

    def _can_keep(self, trainer: L.Trainer, loop: Any, split: str) -> bool:
        """Tell whether an evaluation may read outputs of the prefix: nobody else looks at its images or layers."""
        return split in self.splits and loaders_in_use(loop) is not None and not is_measured(trainer, split)

    def _keep(self, trainer: L.Trainer, pl_module: Any, loop: Any, split: str) -> None:
        """Fill or find the cache of each loader of a split, and let its loop read from there."""
        self.fill_seconds[split] = 0.0
        before = len(self._installed)
        with self._or_without(trainer, f"{split} split: "):
            for number, loader in enumerate(usable_loaders(trainer, loop)):
                self._keep_loader(trainer, pl_module, loader, split, number)
        if len(self._installed) > before:
            begin_again(loop)

    def _keep_loader(
        self, trainer: L.Trainer, pl_module: Any, loader: DataLoader[Any], split: str, number: int
    ) -> None:
        start, training = time.perf_counter(), split == "train"
        drawn = self.views if training else None
        try:
            if not training and (reason := randomness(trainer, pl_module, loader, number=number)):
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
                identity=None if drawn else identity(trainer, pl_module, loader),
            ).run()
        except (CannotKeepError, SplitError, OSError) as error:
            self._go_without(trainer, f"{split} split: {error}")
            return
        witness = None
        if drawn is None and not told_by(trainer).deterministic:
            witness = Witness(rows.uncached, number, training)
            witness.looks_different(trainer, pl_module)
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
        epoch, before = trainer.current_epoch, len(self._installed)
        if epoch & (epoch - 1) or not epoch:
            return False
        for kept in [kept for kept in self._installed if kept.split == split]:
            if kept.witness is None:
                continue
            changed = kept.witness.looks_different(trainer, pl_module)
            if trainer.strategy.reduce_boolean_decision(changed, all=False):
                kept.rows.remove()
                self._installed.remove(kept)
                self.stored_bytes.pop(split, None)
                self._go_without(
                    trainer,
                    f"in epoch {epoch} some {split} images have become others than those whose outputs were kept and"
                    " used until now, so that something random, or files, had been frozen",
                )
        return len(self._installed) < before

    def _shared_folder(self, trainer: L.Trainer) -> Path | None:
        if self.folder is not None:
            return Path(self.folder).expanduser()
        if trainer.world_size == 1:
            return None
        temporary = ""
        if trainer.is_global_zero:
            temporary = self._contexts.enter_context(tempfile.TemporaryDirectory(prefix="nc-finetune-"))
        return Path(trainer.strategy.broadcast(temporary))

    @contextmanager
    def _or_without(self, trainer: L.Trainer, where: str = "") -> Iterator[None]:
        """Go on without a cache where the network cannot be cut, or there is nothing to keep, and say why."""
        try:
            yield
        except SplitError as error:
            self._go_without(trainer, f"{where}{error}")

    def _go_without(self, trainer: L.Trainer, reason: str) -> None:
        if trainer.is_global_zero:
            warnings.warn(f"PrefixCache: {reason}; training goes on without it", stacklevel=2)


class _Kept(NamedTuple):
    """What stands in place of a loader's images, and what these looked like, where that may change."""

    split: str
    rows: CachedRows
    witness: Witness | None
