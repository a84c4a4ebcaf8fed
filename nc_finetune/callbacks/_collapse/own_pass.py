"""One forward pass over a split for the measurement alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import Any

import lightning as L
import torch

from nc_finetune.backbones import NetworkLayers
from nc_finetune.callbacks._collapse.measurement import Measurement, has_forward
from nc_finetune.passes.batches import ClassCap, Unpack, check_labels, prepare_batch
from nc_finetune.passes.evaluation import evaluating
from nc_finetune.passes.measured_data import PlainPass


@dataclass(frozen=True)
class OwnPass:
    """Sends a split through the module, each sample once over all ranks, and once more where a measure needs it.

    Args:
        trainer: The trainer; how batches get to the device and in which precision is its business.
        module: Its module.
        unpack: From a batch to inputs and labels.
        num_classes: K.
        samples_per_class: Samples of each class that are taken; ``None`` is all.
        max_batches: Batches of each rank that are taken; ``None`` is all.
    """

    trainer: L.Trainer
    module: L.LightningModule
    unpack: Unpack
    num_classes: int
    samples_per_class: int | None
    max_batches: int | None

    def run(self, measurement: Measurement, loader: Any, split: str, number: int) -> dict[str, dict[str, float]]:
        """Measure what a loader gives; the module and the random generators are left as they were.

        Args:
            measurement: Where features go.
            loader: The loader.
            split: Its split.
            number: Which of the split's loaders it is.
        """
        with evaluating(self.trainer, self.module):
            with measurement.watch(measurement.take):
                self._go_through(measurement, loader, split, number)
                if measurement.begin_second_pass():
                    self._go_through(measurement, loader, split, number)
            return measurement.compute()

    def _go_through(self, measurement: Measurement, loader: Any, split: str, number: int) -> None:
        index = 0
        try:
            rank, ranks = self.trainer.global_rank, self.trainer.world_size
            data = PlainPass(loader, self.samples_per_class, rank, ranks)
            for index, batch in enumerate(islice(data.batches, self._limit(split, number))):
                self._measure_batch(
                    measurement, data.cap, index, prepare_batch(self.trainer, self.module, batch, number)
                )
                if data.cap.is_full(self.num_classes):
                    break
        except Exception as error:  # of the data, the module or the device: a measurement must not end a training
            measurement.fail_at(index, error)

    def _measure_batch(self, measurement: Measurement, cap: ClassCap, index: int, batch: Any) -> None:
        inputs, labels = self.unpack(batch)
        labels = check_labels(labels)
        rows = None if cap.samples_per_class is None else cap.choose(labels.tolist())
        if rows == [] or not len(labels):
            return
        measurement.begin_batch(index, labels, None if rows is None else torch.tensor(rows))
        _forward(self.module, measurement.network, inputs)
        measurement.end_batch()

    def _limit(self, split: str, number: int) -> int | None:
        """Say how many batches are taken: what ``limit_val_batches`` and the like leave of the trainer's own loop."""
        limits = [math.inf if self.max_batches is None else self.max_batches]
        if split == "train":
            # limit_train_batches takes other samples each epoch, and of sorted data not all classes.
            if getattr(self.trainer, "fast_dev_run", False) or getattr(self.trainer, "overfit_batches", 0):
                limits.append(self.trainer.num_training_batches)
        else:
            batches = self.trainer.num_val_batches if split == "val" else self.trainer.num_test_batches
            limits.append(batches if isinstance(batches, (int, float)) else batches[number])
        return None if math.isinf(min(limits)) else int(min(limits))


def _forward(module: L.LightningModule, network: NetworkLayers, inputs: Any) -> None:
    """Run the module, or its network where it has no ``forward`` of its own."""
    if has_forward(module) or network.network is module:
        module(inputs)
    else:
        network.network(inputs)
