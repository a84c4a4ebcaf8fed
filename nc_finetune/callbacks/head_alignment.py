"""Fixed heads that are turned towards the class means before training."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nc_finetune.backbones import watch_input
from nc_finetune.heads import FrameHead
from nc_finetune.passes.batches import prepare_batch, unpack_batch
from nc_finetune.passes.evaluation import evaluating, refuse_sharded
from nc_finetune.passes.measured_data import PlainPass, loaders_of_split
from nc_finetune.passes.repeats import warn_of_differences


class _ClassSums:
    """Sums and numbers of what a head sees, by class; float64, in which the order of batches hardly shows."""

    def __init__(self, head: FrameHead) -> None:
        self.head = head
        self.sums = torch.zeros_like(head.weight, dtype=torch.float64)
        self.counts = self.sums.new_zeros(len(self.sums))
        self.targets = self.sums

    def expect(self, labels: Tensor) -> None:
        """Take note of the labels of the next batch, ``(N,)``, or several a sample, ``(N, K)``."""
        self.targets = (labels if labels.ndim == 2 else F.one_hot(labels.long(), len(self.sums))).double()

    def take(self, _name: str, features: Any) -> None:
        self.sums += self.targets.T @ self.head.scaled(features).double()
        self.counts += self.targets.sum(dim=0)

    def means(self, trainer: L.Trainer) -> Tensor:
        sums, counts = (trainer.strategy.reduce(value, reduce_op="sum") for value in (self.sums, self.counts))
        if empty := (counts == 0).nonzero().flatten().tolist():
            raise ValueError(
                f"the head is turned towards the class means, and the training data have no images of class"
                f" {', '.join(map(str, empty))}; use orientation='random'"
            )
        means: Tensor = sums / counts.unsqueeze(1)
        return means


class HeadAlignment(L.Callback):
    """Turn fixed heads with ``orientation="class_means"`` towards the means of what they see, once, before training.

    One pass over the training split, without augmentation where the datamodule can do without, in eval mode. A head
    that has been aligned stays as it is: when a fit is resumed or repeated, and when it comes from a delta.
    :class:`~nc_finetune.ImageClassifier` brings this callback along where its head asks for it.

    Raises:
        ValueError: If a class has no images, or the strategy shards the network.

    Source:
        Schonemann 1966, A generalized solution of the orthogonal Procrustes problem, 10.1007/BF02289451.

    Example:
        >>> from nc_finetune.heads import SimplexETFHead
        >>> HeadAlignment.is_needed(SimplexETFHead(8, 3, orientation="class_means"))
        True
    """

    @staticmethod
    def is_needed(head: nn.Module) -> bool:
        """Tell whether a head is, or holds, a frame that still waits for the class means."""
        return bool(_waiting(head))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse strategies that shard the network."""
        refuse_sharded(trainer, type(self).__name__)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pass the training split through the network and align what waits for it."""
        frames = {frame: _ClassSums(frame) for frame in _waiting(pl_module)}
        if not frames:
            return
        (loader,) = loaders_of_split(trainer, "train")
        warn_of_differences(trainer, pl_module, loader, type(self).__name__)
        with evaluating(trainer, pl_module), ExitStack() as hooks:
            for frame, sums in frames.items():
                hooks.enter_context(watch_input(frame, "", sums.take))
            for batch in PlainPass(loader, None, trainer.global_rank, trainer.world_size).batches:
                images, labels = unpack_batch(prepare_batch(trainer, pl_module, batch))
                for sums in frames.values():
                    sums.expect(labels)
                pl_module(images)
        for frame, sums in frames.items():
            frame.align_(sums.means(trainer))


def _waiting(module: nn.Module) -> list[FrameHead]:
    return [part for part in module.modules() if isinstance(part, FrameHead) and part.awaits_class_means]
