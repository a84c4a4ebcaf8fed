"""What may be better than a readout: ways to tune the network, from cheap to dear."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace

import torch

from nc_finetune.backbones import Backbone, LayerChoice
from nc_finetune.classifier import ImageClassifier
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

_DEPTHS = (0.7, 0.85, 0.55)  # shares of the network that come before the key block, best bet first
_RATE_FACTOR, _MOST_STEPS = 3.0, 3
_FULL_RATE = 1e-3


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


def said_of_rate(chosen: Candidate, tried: Sequence[Candidate]) -> str:
    """Return a word on where a learning rate lies among those that were tried; empty where it is inside.

    Args:
        chosen: The candidate.
        tried: It, and others.
    """
    same = replace(chosen, learning_rate=0.0)
    rates = sorted(one.learning_rate for one in tried if replace(one, learning_rate=0.0) == same)
    if len(rates) < 2:
        return "at the only learning rate that was tried"
    where = {rates[0]: "smallest", rates[-1]: "largest"}.get(chosen.learning_rate)
    return f"at the {where} of {len(rates)} learning rates" if where else ""
