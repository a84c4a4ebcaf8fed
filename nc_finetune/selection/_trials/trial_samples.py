"""The images that trials share: decoded once, and run through a frozen prefix once a trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from nc_finetune.backbones import PrefixOutput, SplitBackbone, SplitError
from nc_finetune.classifier import ImageClassifier
from nc_finetune.data import ImageData
from nc_finetune.selection.features import subset_batches

_FEWEST_VAL_IMAGES = 400
_MOST_IMAGES = 2000
_MOST_BYTES = 2**30  # of what a prefix gives, kept by one trial


@dataclass(frozen=True)
class Samples:
    """Images, or what a frozen prefix gave of them, with labels.

    Attributes:
        inputs: Images ``(N, 3, H, W)``, or outputs of a prefix with N samples each.
        labels: Shape ``(N,)``.
    """

    inputs: Tensor | PrefixOutput
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: Tensor | slice) -> Samples:
        """Return some of them."""
        if isinstance(self.inputs, dict):
            return Samples({name: value[rows] for name, value in self.inputs.items()}, self.labels[rows])
        return Samples(self.inputs[rows], self.labels[rows])

    def batches(self, size: int) -> Iterator[Samples]:
        """Return all of them in order, in batches."""
        yield from (self.rows(slice(start, start + size)) for start in range(0, len(self), size))

    def to(self, device: torch.device) -> Samples:
        """Move them to a device."""
        if isinstance(self.inputs, dict):
            return Samples({name: value.to(device) for name, value in self.inputs.items()}, self.labels.to(device))
        return Samples(self.inputs.to(device), self.labels.to(device))


@dataclass(frozen=True)
class TrialSamples:
    """What trials train on and are judged by.

    Attributes:
        train: Of the training split, up to 2,000.
        val: Of the validation split, as many as there are for training, but at least 400 where there are.
        num_classes: K.
        batch_size: Samples a step.
    """

    train: Samples
    val: Samples
    num_classes: int
    batch_size: int

    @classmethod
    def load(cls, data: ImageData, seed: int = 0) -> TrialSamples:
        """Decode the images once, without augmentation.

        Args:
            data: Where they come from; the test split is not touched.
            seed: Which of them, where there are more.
        """
        train = _load(data, "train", _MOST_IMAGES, seed)
        val = _load(data, "val", max(_FEWEST_VAL_IMAGES, len(train)), seed)
        return cls(train, val, data.num_classes, data.batch_size)


def _load(data: ImageData, split: str, number: int, seed: int) -> Samples:
    images, labels = zip(*subset_batches(data, split, number, seed), strict=True)
    return Samples(torch.cat(images), torch.cat(labels))


@torch.no_grad()
def through_prefix(
    model: ImageClassifier,
    samples: Samples,
    split: SplitBackbone,
    batch_size: int,
    earlier: SplitBackbone | None = None,
) -> Samples | None:
    """Run samples through the frozen prefix of a model.

    Args:
        model: Tells the device.
        samples: Images, or what an earlier prefix of the same backbone gave.
        split: The backbone, cut before what is tuned.
        batch_size: Images at a time.
        earlier: The earlier cut, from which to go on.

    Returns:
        What the prefix gave, on the CPU; ``None`` where it would take more than 1 GiB.
    """
    device = next(model.parameters()).device
    parts: list[PrefixOutput] = []
    for batch in samples.batches(batch_size):
        with _images_of(batch.to(device), earlier) as images:
            found = {name: value.cpu() for name, value in split.prefix(images).items()}
        parts.append(found)
        size = sum(value.numel() * value.element_size() for value in found.values())
        if size / len(batch) * len(samples) > _MOST_BYTES:
            return None
    return Samples({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, samples.labels)


def try_split(model: ImageClassifier, samples: Samples) -> SplitBackbone | None:
    """Cut the backbone of a model before what is tuned; ``None`` where that cannot be done."""
    device = next(model.parameters()).device
    model.eval()
    try:
        with _images_of(samples.rows(slice(0, 2)).to(device), None) as images:
            return model.split_prefix(images)
    except SplitError:
        return None


def can_go_on(earlier: SplitBackbone | None, split: SplitBackbone) -> bool:
    """Tell whether what was kept at one cut can be brought on to another."""
    if earlier is None or split.skip_layers or split.input_layers:  # what is wanted may lie before the earlier cut
        return False
    names = split.backbone.layer_names
    return names.index(earlier.cut) < names.index(split.cut)


def _images_of(samples: Samples, earlier: SplitBackbone | None) -> AbstractContextManager[Tensor]:
    """Return images for the backbone, or blanks with which it goes on from an earlier cut."""
    if isinstance(samples.inputs, Tensor):
        return nullcontext(samples.inputs)
    if earlier is None:
        raise TypeError("these samples are outputs of a prefix; images are wanted")
    return earlier.resume(samples.inputs)
