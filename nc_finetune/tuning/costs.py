"""How long it takes to judge ways to tune a network, and how a fit is stopped that takes too long."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nc_finetune.backbones import Backbone
from nc_finetune.classifier import ImageClassifier
from nc_finetune.data import ImageData
from nc_finetune.selection.cross_validation import FoldError
from nc_finetune.selection.profile import block_costs
from nc_finetune.selection.shared_caches import prefix_caches
from nc_finetune.tuning.candidates import Candidate

_STEPS = 3  # by which the time of training is measured
_LEAST = 0.02  # of a forward pass: what an epoch takes however little it computes


class OutOfTimeError(FoldError):
    """A fit was stopped since there was no more time for it."""


class Company(L.Callback):
    """What accompanies a fit: caches of frozen parts, and itself, which stops it when time is up.

    Attributes:
        until: The moment, in seconds of :func:`time.time`.
    """

    def __init__(self, until: float = math.inf) -> None:
        self.until = until

    def __call__(self, model: ImageClassifier) -> list[L.Callback]:
        """Return what accompanies the fit of a model."""
        return [*prefix_caches(model), self]

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Stop the fit when time is up."""
        if time.time() > self.until:
            raise OutOfTimeError("there was no more time for it")


class Costs:
    """How long candidates take, by the time of training steps, counted arithmetic, and what earlier ones took.

    Args:
        backbone: The network.
        data: The training images.
        pass_seconds: What one forward pass over all of them takes.

    Attributes:
        epoch: What an epoch of full fine-tuning takes, in seconds, where images are decoded already.
        reading: What it takes to decode the images.
    """

    def __init__(self, backbone: Backbone, data: ImageData, pass_seconds: float) -> None:
        self._blocks = {found.block: found.cached_flops for found in block_costs(backbone, data)}
        blank = torch.zeros(1, 3, data.image_size, data.image_size, dtype=torch.uint8)
        backbone.eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            backbone(blank.to(next(backbone.parameters()).device))
        self._full = max(1, 3 * counter.get_total_flops())
        self._pass = pass_seconds
        images = len(data.images("train"))
        forward, step = _seconds_of_an_image(backbone, blank, data.batch_size)
        self.epoch, self.reading = images * step, max(0.0, pass_seconds - images * forward)
        self._slower = {True: 1.0, False: 1.0}  # behind a prefix that is kept, or without one

    def fits(self, candidate: Candidate, images: float = 1.0) -> float:
        """Return the seconds of fits of a candidate, which share what a frozen prefix gives.

        Args:
            candidate: What is fitted.
            images: On how many in all, in shares of the training images: 3 for three fits to all.
        """
        once, each = self._seconds(candidate)
        return once + self._slower[once > 0] * images * candidate.epochs * each

    def learn(self, candidate: Candidate, images: float, seconds: float) -> None:
        """Take note of what the first fits of a candidate took."""
        once, each = self._seconds(candidate)
        found = (seconds - once) / (images * candidate.epochs * each)
        self._slower[once > 0] = max(0.5, min(20.0, found))

    def _seconds(self, candidate: Candidate) -> tuple[float, float]:
        """Return what is spent once on all images, and then in each epoch."""
        names, first = list(self._blocks), candidate.block.split(" ")[0]
        if first not in self._blocks:
            return 0.0, self.epoch
        flops = self._blocks[first]
        after = names[names.index(first) + 1 :]
        if candidate.kind == "side FT" and after:
            flops -= self._blocks[after[0]]
        return self._pass, max(self.epoch * flops / self._full, _LEAST * self._pass)


def _seconds_of_an_image(backbone: Backbone, blank: Tensor, batch_size: int) -> tuple[float, float]:
    """Return the seconds that a forward pass takes, and a step of training the whole network."""
    images = blank.expand(max(2, batch_size), -1, -1, -1).to(next(backbone.parameters()).device)
    network = deepcopy(backbone).requires_grad_(True).eval()  # batches of one in train mode have no variance

    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(_STEPS):
            start = time.perf_counter()
            work()
            if images.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times) / len(images)

    with torch.no_grad():
        forward = seconds(lambda: network(images))
    try:
        with torch.enable_grad():
            return forward, seconds(lambda: network(images).sum().backward())
    except RuntimeError:  # it does not fit into memory, as fits will find, or passes no gradients on
        return forward, 3 * forward
