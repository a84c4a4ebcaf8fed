"""One forward pass over a split for the measurement alone."""

from __future__ import annotations

from itertools import islice
from typing import Any

import lightning as L
import torch

from nc_finetune.backbones import NetworkLayers
from nc_finetune.callbacks.batches import Unpack, check_labels
from nc_finetune.callbacks.evaluation import evaluating
from nc_finetune.callbacks.measured_data import PlainPass
from nc_finetune.callbacks.measurement import Measurement


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

    def __init__(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        *,
        unpack: Unpack,
        num_classes: int,
        samples_per_class: int | None,
        max_batches: int | None,
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.unpack = unpack
        self.num_classes = num_classes
        self.samples_per_class = samples_per_class
        self.max_batches = max_batches

    def run(self, measurement: Measurement, loader: Any) -> dict[str, dict[str, float]]:
        """Measure what a loader gives; the module and the random generators are left as they were."""
        with evaluating(self.trainer, self.module):
            with measurement.watch(measurement.take):
                self._go_through(measurement, loader)
                if measurement.begin_second_pass():
                    self._go_through(measurement, loader)
            return measurement.compute()

    def _go_through(self, measurement: Measurement, loader: Any) -> None:
        index = 0
        try:
            rank, ranks = self.trainer.global_rank, self.trainer.world_size
            data = PlainPass(loader, self.samples_per_class, rank, ranks)
            for index, batch in enumerate(islice(data.batches, self._limit())):
                self._measure_batch(measurement, data, index, batch)
        except Exception as error:  # of the data, the module or the device: a measurement must not end a training
            measurement.fail(f"batch {index}: {error}", error)

    def _measure_batch(self, measurement: Measurement, data: PlainPass, index: int, batch: Any) -> None:
        # Looked at before it leaves the CPU: there, labels out of range and full classes cost no waiting.
        labels = check_labels(self.unpack(batch)[1], self.num_classes)
        rows = None if data.cap.samples_per_class is None else data.cap.choose(labels.tolist())
        if rows == []:
            return
        batch = self.trainer.precision_plugin.convert_input(batch)
        inputs, labels = self.unpack(self.trainer.strategy.batch_to_device(batch))
        labels = check_labels(labels, self.num_classes)
        chosen = None if rows is None else torch.tensor(rows).to(labels.device, non_blocking=True)
        measurement.begin_batch(index, labels, chosen)
        _forward(self.module, measurement.network, inputs)
        measurement.end_batch()

    def _limit(self) -> int | None:
        limits = [] if self.max_batches is None else [self.max_batches]
        debugged = int(getattr(self.trainer, "fast_dev_run", 0))
        if debugged:
            limits.append(debugged)
        elif getattr(self.trainer, "overfit_batches", 0):
            limits.append(int(self.trainer.num_training_batches))
        return min(limits, default=None)


def _forward(module: L.LightningModule, network: NetworkLayers, inputs: Any) -> None:
    """Run the module, or its network where it has no ``forward`` of its own."""
    has_forward = type(module).forward is not L.LightningModule.forward
    if has_forward or network.network is module:
        module(inputs)
    else:
        network.network(inputs)
