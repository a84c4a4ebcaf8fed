"""A measurement along the validation or test loop, without a forward pass of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from nc_finetune.callbacks._collapse.measurement import Measurement
from nc_finetune.passes.batches import Unpack, check_labels, count_unrepeated
from nc_finetune.passes.evaluation import run_eagerly


class LoopRide:
    """Hooks that are held while a loop of the trainer runs, and a measurement for each of its loaders.

    Args:
        module: The module that the loop runs.
        loaders: The loaders of the loop.
        new_measurement: Begins a measurement.
        unpack: From a batch to inputs and labels.
        max_batches: Batches of each loader that are taken; ``None`` is all.
    """

    def __init__(
        self,
        module: nn.Module,
        loaders: Sequence[Any],
        new_measurement: Callable[[], Measurement],
        *,
        unpack: Unpack,
        max_batches: int | None,
    ) -> None:
        self.loaders = loaders
        self.unpack = unpack
        self.max_batches = max_batches
        self.measurements = [new_measurement() for _ in loaders]
        self._seen = [0] * len(loaders)
        self._current: Measurement | None = None
        with ExitStack() as hooks:
            hooks.enter_context(run_eagerly(module))
            hooks.enter_context(self.measurements[0].watch(self._take))
            self._hooks = hooks.pop_all()

    def _take(self, layer: str, output: Any) -> None:
        if self._current is not None:
            self._current.take(layer, output)

    def begin_batch(self, batch: Any, index: int, loader: int) -> None:
        """Take the labels of the batch that comes; samples that the sampler repeats do not count."""
        if self.max_batches is not None and index >= self.max_batches:
            return
        measurement = self.measurements[loader]
        try:
            labels = check_labels(self.unpack(batch)[1])
        except Exception as error:  # also of a user's function; a measurement must not end a training
            measurement.fail_at(index, error)
            return
        own = count_unrepeated(self.loaders[loader], self._seen[loader], len(labels))
        self._seen[loader] += len(labels)
        measurement.begin_batch(index, labels, slice(own))
        self._current = measurement

    def end_batch(self) -> None:
        """Let go of the batch."""
        if self._current is not None:
            self._current.end_batch()
            self._current = None

    def close(self) -> None:
        """Remove the hooks."""
        self._hooks.close()
