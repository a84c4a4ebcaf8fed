"""Loaders of images for training and measuring: who reads which of them, in which order, by how many workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from nc_finetune.data.labelled_images import LabelledImages, SkippingLoader, collate
from nc_finetune.data.training_order import (
    FixedOrder,
    OwnShare,
    SomeItems,
    TrainingLoader,
    TrainingOrder,
    balancing_weights,
)
from nc_finetune.data.unlabelled_folder import UnlabelledImages
from nc_finetune.data.workers import choose_workers


@dataclass(frozen=True, kw_only=True)
class ImageLoaders:
    """Builds loaders for the processes of a trainer.

    Attributes:
        trainer: Whose processes share the images out; ``None`` is one process alone.
        batch_size: Images a batch.
        num_workers: Processes that decode; ``None`` chooses for each split.
        balance_classes: Draw training images so that every class comes equally often.
        chosen: How many processes were chosen, by what they read: chosen once.
    """

    trainer: Any
    batch_size: int
    num_workers: int | None
    balance_classes: bool = False
    chosen: dict[str, int] = field(default_factory=dict)

    def training(self, images: LabelledImages, items: Sequence[int] | None = None) -> TrainingLoader:
        """Return shuffled batches, in an order that depends on torch's seed and the epoch alone.

        Args:
            images: What is read.
            items: Those of them that are; ``None`` is all.
        """
        order, options = self._order_of(images, items), self._options(images, "training")
        loader = TrainingLoader(images, sampler=order, generator=torch.Generator(), **options)
        loader.limit = partial(getattr, self.trainer, "num_training_batches", math.inf)
        return loader

    def in_order(self, images: LabelledImages | UnlabelledImages, name: str) -> SkippingLoader:
        """Return batches in a fixed order, each image on one process alone: repeated ones would count twice.

        Args:
            images: What is read.
            name: Of the split; ``"train"`` begins with the batches that are trained on where a trainer overfits some.
        """
        ranks, rank = self._ranks
        sampler: Any = OwnShare(images, num_replicas=ranks, rank=rank, shuffle=False) if ranks > 1 else None
        if name == "train" and self._overfits and isinstance(images, LabelledImages):
            sampler = self._order_of(images)
        return SkippingLoader(images, sampler=sampler, **self._options(images, name))

    def some_in_order(self, images: LabelledImages, name: str, items: Sequence[int]) -> SkippingLoader:
        """Return batches of some images in a fixed order, all of them on each process.

        Args:
            images: What is read.
            name: Of the split.
            items: Places of the images.
        """
        sampler: Any = SomeItems(items)
        return SkippingLoader(images, sampler=sampler, **self._options(images, name))

    def _order_of(self, images: LabelledImages, items: Sequence[int] | None = None) -> TrainingOrder:
        (ranks, rank), kind = self._ranks, FixedOrder if self._overfits else TrainingOrder
        labels = images.labels
        drawn = labels if items is None else [labels[item] for item in items]
        weights = balancing_weights(drawn) if self.balance_classes else None
        seed = torch.initial_seed()
        if ranks > 1:  # all share one order, also where nobody has set a seed
            seed = self.trainer.strategy.broadcast(seed)
        return kind(images, seed=seed, ranks=ranks, rank=rank, weights=weights, items=items)

    @property
    def _ranks(self) -> tuple[int, int]:
        """Number of processes, and which this is."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    @property
    def _overfits(self) -> bool:
        return bool(getattr(self.trainer, "overfit_batches", 0))

    def _options(self, images: LabelledImages | UnlabelledImages, name: str) -> dict[str, Any]:
        workers = self._workers(images, name) if self.num_workers is None else self.num_workers
        return {
            "batch_size": self.batch_size,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": self._on_gpu,
            "collate_fn": collate,
        }

    def _workers(self, images: LabelledImages | UnlabelledImages, name: str) -> int:
        if name not in self.chosen:
            self.chosen[name] = choose_workers(images, self.trainer.num_devices if self.trainer else 1)
        return self.chosen[name]

    @property
    def _on_gpu(self) -> bool:
        """Whether batches go to a GPU: memory pinned for nothing is memory that the system cannot move."""
        if self.trainer is None:
            return torch.cuda.is_available()
        return bool(self.trainer.strategy.root_device.type == "cuda")
