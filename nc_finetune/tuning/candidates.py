"""What may be better than a readout: ways to tune the network, from cheap to dear."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nc_finetune.backbones import Backbone, LayerChoice
from nc_finetune.classifier import ImageClassifier
from nc_finetune.data import ImageData
from nc_finetune.heads import CosineHead, DiscriminantHead
from nc_finetune.methods import (
    AdapterTuning,
    FinetuningMethod,
    FullFinetuning,
    LayerFinetuning,
    LayerReadout,
    SideFinetuning,
    SkipConnectionFinetuning,
)
from nc_finetune.selection.profile import block_costs

_DEPTHS = (0.7, 0.85, 0.55)  # shares of the network that come before the key block, best bet first
_RATE_FACTOR, _MOST_STEPS = 3.0, 3
_FULL_RATE = 1e-3
_STEPS = 3  # by which the time of training is measured
_LEAST = 0.02  # of a forward pass: what an epoch takes however little it computes


@dataclass(frozen=True)
class Candidate:
    """A way to tune a network.

    Attributes:
        kind: Of method, in words.
        block: The key block; empty where there is none.
        learning_rate: Of what is tuned.
        epochs: Passes over the training images.
        make: Builds the method.
        layers: Of the readout where training begins, which are then what the head sees; ``None`` begins with a random
            cosine head on the feature.
        augmented: Whether training images are flipped and cropped.
    """

    kind: str
    block: str
    learning_rate: float
    epochs: int
    make: Callable[[], FinetuningMethod]
    layers: LayerChoice | None = None
    augmented: bool = False

    @property
    def name(self) -> str:
        """What it is called."""
        where = f" of {self.block}" if self.block else ""
        start = "" if self.layers is None else " from the readout"
        shown = ", flipped and cropped" if self.augmented else ""
        return f"{self.kind}{where}{start}{shown}, rate {self.learning_rate:g}"

    def build(self, backbone: Backbone, num_classes: int) -> ImageClassifier:
        """Return a model on a copy of a network.

        Args:
            backbone: The pre-trained network.
            num_classes: K.
        """
        method, head = self.make(), DiscriminantHead if self.layers else CosineHead
        if self.layers:
            method = LayerReadout(self.layers, method=method)
        return ImageClassifier(
            deepcopy(backbone), num_classes, method=method, head=head, learning_rate=self.learning_rate
        )

    def at_rate(self, factor: float) -> Candidate:
        """Return the same at another rate."""
        return replace(self, learning_rate=float(f"{self.learning_rate * factor:.3g}"))


def proposals(
    backbone: Backbone, layers: LayerChoice, epochs: int, scores: Mapping[str, float], image_size: int
) -> Iterator[list[Candidate]]:
    """Propose ways to tune a network, some at a time, in view of how those before have done.

    A copy of one block beside the network first, at three depths, then the best block at other rates; then, from where
    the readout ends, that block in the network, it with its neighbours, and the whole network, and
    the best of these at other rates; then the whole network on flipped and cropped images, and LoRA where peft is
    there. Rates and starts were measured on digits and CIFAR-10 (benchmarks/results/readout/tuned.md).

    Args:
        backbone: The network.
        layers: Of its readout.
        epochs: Passes over the training images.
        scores: By the name of a candidate what it has reached, higher is better; filled while this goes on. What is
            missing was left out.
        image_size: Height and width of the images.
    """

    def takes(candidate: Candidate) -> bool:
        return _takes(backbone, candidate, image_size)

    def best(tried: list[Candidate]) -> Candidate:
        return max(tried, key=lambda one: scores.get(one.name, float("-inf")))

    beside = _beside(backbone, epochs, takes)
    inside: list[Candidate] = []
    if beside:
        yield list(beside)
        yield from _other_rates(best(beside), scores, beside)
        block = best(beside).block
        every = list(backbone.block_names)
        span = every[max(0, every.index(block) - 1) : every.index(block) + 2]
        joined = [_of_block("SCL-FT", SkipConnectionFinetuning, one, epochs) for one in (block, span)]
        inside = [replace(one, layers=layers) for one in joined if takes(one)]
    inside.append(Candidate("full FT", "", _FULL_RATE, epochs, FullFinetuning, layers))
    yield list(inside)
    yield from _other_rates(best(inside), scores, inside)
    others = [replace(best([one for one in inside if not one.block]), augmented=True)]
    with suppress(ImportError):
        adapters = Candidate("LoRA", "", AdapterTuning.default_learning_rate or 1e-3, epochs, AdapterTuning, layers)
        others += [adapters] if takes(adapters) else []
    yield list(others)
    yield from _other_rates(best(others), scores, others)


def _of_block(kind: str, method: type[LayerFinetuning], block: str | list[str], epochs: int) -> Candidate:
    where = block if isinstance(block, str) else f"{block[0]} to {block[-1]}"
    return Candidate(kind, where, method.default_learning_rate or 1e-3, epochs, lambda: method(block))


def _beside(backbone: Backbone, epochs: int, takes: Callable[[Candidate], bool]) -> list[Candidate]:
    """Return copies of blocks beside the network, at each depth of the nearest block that has something to train."""
    names = [name for name in backbone.block_names if any(True for _ in backbone.get_layer(name).parameters())]
    found: dict[str, Candidate] = {}
    for depth in _DEPTHS:
        wanted = int(depth * len(names))
        near = sorted(range(len(names)), key=lambda place: abs(place - wanted))
        candidates = (_of_block("side FT", SideFinetuning, names[place], epochs) for place in near)
        if (candidate := next(filter(takes, candidates), None)) is not None:
            found.setdefault(candidate.name, candidate)
    return list(found.values())


@torch.inference_mode()
def _takes(backbone: Backbone, candidate: Candidate, image_size: int) -> bool:
    """Tell whether a network can be tuned in some way: a block may be too wide to be joined, or nothing be adapted.

    Raises:
        ImportError: If a library is missing.
    """
    device = next(backbone.parameters()).device
    try:
        model = candidate.build(backbone, 2).to(device).eval()
        model.features(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8, device=device))
    except (RuntimeError, ValueError):
        return False
    return True


def _other_rates(middle: Candidate, scores: Mapping[str, float], tried: list[Candidate]) -> Iterator[list[Candidate]]:
    """Propose the rates beside that of a candidate, then further ones in the direction that does better."""
    if middle.name not in scores:
        return
    ways = {factor: middle.at_rate(factor) for factor in (_RATE_FACTOR, 1 / _RATE_FACTOR)}
    tried += ways.values()
    yield list(ways.values())
    for factor, moved in ways.items():
        at = middle
        for _ in range(_MOST_STEPS):
            if scores.get(moved.name, float("-inf")) <= scores[at.name]:
                break
            at, moved = moved, moved.at_rate(factor)
            tried.append(moved)
            yield [moved]


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
