"""The collapse measures of several layers while batches go through a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from nc_finetune.backbones import PENULTIMATE, STEM, NetworkLayers, Pooling, hidden_state
from nc_finetune.callbacks._collapse.layer_sums import LayerSums
from nc_finetune.metrics import NeuralCollapse

NewMetric = Callable[[int, tuple[str, ...], bool], NeuralCollapse]
_HALF = (torch.float16, torch.bfloat16)


class MeasurementError(RuntimeError):
    """A measurement failed, and the callback was told to be strict."""


class Measurement:
    """Sums of the chosen layers over one pass, or two, through the data.

    Args:
        network: Where the layers are.
        measures: What to measure of each layer, by name of the layer, in the order of the network.
        num_classes: K.
        new_metric: Builds a metric from the width of the features, the measures and whether there is a scatter.
        pooling: How outputs become vectors.
        device: Where ranks agree on what they have seen.
    """

    def __init__(
        self,
        network: NetworkLayers,
        measures: Mapping[str, tuple[str, ...]],
        num_classes: int,
        new_metric: NewMetric,
        *,
        pooling: Pooling,
        device: torch.device,
    ) -> None:
        self.network = network
        self.measures = dict(measures)
        self.num_classes = num_classes
        self.pooling = pooling
        self.device = device
        self._new_metric = new_metric
        self._sums = {layer: LayerSums(names, partial(self._make, layer)) for layer, names in self.measures.items()}
        self._labels: Tensor | None = None
        self._rows: slice | Tensor = slice(None)
        self._outside = torch.tensor([-1, 0, 0], device=device)  # first batch with a label that is no class; its range
        self._batch = 0
        self._second_pass = False

    @property
    def problems(self) -> dict[str, str]:
        """Why a layer has no values, by its name."""
        return {name: sums.problem for name, sums in self._sums.items() if sums.problem is not None}

    @property
    def cause(self) -> Exception | None:
        """The first exception behind :attr:`problems` on this rank."""
        return next((sums.error for sums in self._sums.values() if sums.error is not None), None)

    def begin_batch(self, batch: int, labels: Tensor, rows: slice | Tensor | None = None) -> None:
        """Say which labels the next features have, and which rows of these count; ``None`` is all."""
        self._batch = batch
        self._rows = slice(None) if rows is None else rows
        self._labels = self._in_range(labels.to(self.device))
        for sums in self._sums.values():
            sums.taken = False

    def _in_range(self, labels: Tensor) -> Tensor:
        """Keep labels that are no class from the sums, where they would end the process; nobody waits for it."""
        if not labels.numel():
            return labels
        smallest, largest = labels.aminmax()
        found = torch.stack([torch.full_like(smallest, self._batch), smallest, largest])
        first = (self._outside[0] < 0) & ((smallest < 0) | (largest >= self.num_classes))
        self._outside = torch.where(first, found, self._outside)
        return labels.clamp(0, self.num_classes - 1)

    def end_batch(self) -> None:
        """Take no more features until the next batch begins."""
        self._labels = None

    def take(self, layer: str, output: Any) -> None:
        """Add what a layer gave; only its first run in a batch counts. A failure is kept, not raised."""
        sums = self._sums[layer]
        unwanted = self._second_pass and not sums.second_pass
        if self._labels is None or sums.taken or unwanted or sums.problem is not None:
            return
        sums.taken = True
        try:
            features = self._features(layer, output)
            if len(features) != len(self._labels):
                raise ValueError(f"{len(features)} features came for {len(self._labels)} labels")
            sums.add(features[self._rows], self._labels[self._rows], self._batch)
        except Exception as error:  # a measurement must not end a training, whatever went wrong in it
            sums.fail(_at(self._batch, error), error)

    def _features(self, layer: str, output: Any) -> Tensor:
        state = hidden_state(output).detach()
        dtype = torch.float32 if state.dtype in _HALF else None
        # Before the first block the class token has seen nothing of the image.
        pooling: Pooling = "average" if layer == STEM and self.pooling == "default" else self.pooling
        return self.network.pool(state, pooling, dtype, layer)

    def fail(self, problem: str, error: Exception | None = None) -> None:
        """Give up all layers."""
        for sums in self._sums.values():
            sums.fail(problem, error)

    def fail_at(self, batch: int, error: Exception) -> None:
        """Give up all layers because of what a batch brought."""
        hint = "; where steps change what a batch has for inputs or labels, pass unpack=, a function that does so, too"
        self.fail(_at(batch, error) + ("" if "unpack=" in str(error) else hint), error)

    def watch(self, take: Callable[[str, Any], None]) -> ExitStack:
        """Register the hooks of all layers; they are gone when the returned stack is closed."""
        with ExitStack() as hooks:
            for layer in self.measures:
                hooks.enter_context(self.network.watch(layer, take))
            return hooks.pop_all()

    def begin_second_pass(self) -> bool:
        """Fix the class means of the layers that must see every sample again; say whether there are any."""
        self._agree()
        for sums in self._sums.values():
            if sums.needs_second_pass and sums.problem is None:
                sums.begin_second_pass()
        self._second_pass = True
        return any(sums.second_pass for sums in self._sums.values())

    def compute(self) -> dict[str, dict[str, float]]:
        """Return the measures of each layer over all ranks; ``nan`` where :attr:`problems` says why."""
        self.end_batch()
        self._agree()
        return {layer: sums.compute() for layer, sums in self._sums.items()}

    def _make(self, layer: str, width: int, scatter: bool) -> NeuralCollapse:
        metric = self._new_metric(width, self.measures[layer], scatter)
        classifier = self.network.classifier
        if layer == PENULTIMATE and classifier is not None and _fits(classifier, metric):
            metric.set_classifier(classifier.weight, getattr(classifier, "bias", None))  # type: ignore[arg-type]
        return metric

    def _agree(self) -> None:
        """Let all ranks know what any of them saw: a rank may have had no sample, or have failed."""
        batch, smallest, largest = self._outside.tolist()
        if batch >= 0:
            span = f"[0, num_classes) = [0, {self.num_classes})"
            self.fail(f"batch {batch}: labels must lie in {span}, got {smallest} to {largest}")
        widths = [0 if s.metric is None else s.metric.num_features for s in self._sums.values()]
        flags = [[int(s.problem is not None), int(s.is_folded)] for s in self._sums.values()]
        rows = [[w, -w if w else -(2**62), *two] for w, two in zip(widths, flags, strict=True)]
        seen = torch.tensor(rows, dtype=torch.int64, device=self.device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX)
        for sums, (largest, smallest, any_failed, any_folded) in zip(self._sums.values(), seen.tolist(), strict=True):
            if any_failed:
                sums.fail("it failed in another process")
            elif largest == 0:
                root = self.network.root
                reason = "it gave nothing: it did not run in the forward pass of any batch"
                without = f"; {type(root).__name__} has no forward(), so its network alone is run"
                sums.fail(reason if has_forward(root) else reason + without)
            elif largest != -smallest:
                sums.fail(f"its width differs between processes: {-smallest} to {largest}")
            else:
                sums.ensure_metric(largest, self.device)
                if any_folded:
                    sums.fold()


def has_forward(module: nn.Module) -> bool:
    """Tell whether a module can be called: a LightningModule may do all in its steps."""
    return type(module).forward is not L.LightningModule.forward


def _at(batch: int, error: Exception) -> str:
    told = isinstance(error, (TypeError, ValueError))  # others, such as KeyError: 'x', need their name
    return f"batch {batch}: {error}" if told else f"batch {batch}: {type(error).__name__}: {error}"


def _fits(classifier: nn.Module, metric: NeuralCollapse) -> bool:
    weight = getattr(classifier, "weight", None)
    return isinstance(weight, Tensor) and weight.shape == (metric.num_classes, metric.num_features)
