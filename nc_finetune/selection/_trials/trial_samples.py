"""The images that trials share: decoded once, and run through a frozen prefix once a trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nc_finetune.backbones import FrozenPrefix, PrefixOutput, SplitError, resumed
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
        split: The network whose prefix that was.
    """

    inputs: Tensor | PrefixOutput
    labels: Tensor
    split: FrozenPrefix | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: Tensor | slice) -> Samples:
        """Return some of them."""
        return self._each(lambda value: value[rows])

    def batches(self, size: int) -> Iterator[Samples]:
        """Return all of them in order, in batches."""
        yield from (self.rows(slice(start, start + size)) for start in range(0, len(self), size))

    def to(self, device: torch.device) -> Samples:
        """Move them to a device."""
        return self._each(lambda value: value.to(device))

    def images(self) -> AbstractContextManager[Tensor]:
        """Return a context that gives images for the model, or blanks with which it goes on from the cut."""
        return resumed(self.inputs, self.split)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Samples:
        if isinstance(self.inputs, dict):
            outputs = {name: change(value) for name, value in self.inputs.items()}
            return replace(self, inputs=outputs, labels=change(self.labels))
        return replace(self, inputs=change(self.inputs), labels=change(self.labels))


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
def through_prefix(samples: Samples, split: FrozenPrefix, batch_size: int) -> Samples | None:
    """Run samples through a frozen prefix.

    Args:
        samples: Images, or what an earlier prefix of the same backbone gave.
        split: The backbone, cut before what is tuned.
        batch_size: Images at a time.

    Returns:
        What the prefix gave, on the CPU; ``None`` where it would take more than 1 GiB.
    """
    parts: list[PrefixOutput] = []
    for batch in samples.batches(batch_size):
        with batch.to(split.device).images() as images:
            found = {name: value.cpu() for name, value in split.prefix(images).items()}
        parts.append(found)
        size = sum(value.nbytes for value in found.values())
        if size / len(batch) * len(samples) > _MOST_BYTES:
            return None
    return Samples({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, samples.labels, split)


def try_split(model: ImageClassifier, samples: Samples) -> FrozenPrefix | None:
    """Cut the backbone of a model before what is tuned; ``None`` where that cannot be done."""
    model.eval()
    try:
        with samples.rows(slice(0, 2)).to(model.device).images() as images:
            return FrozenPrefix(model, images)
    except SplitError:
        return None


def can_go_on(earlier: FrozenPrefix | None, split: FrozenPrefix) -> bool:
    """Tell whether what was kept at one cut can be brought on to another."""
    if earlier is None or split.skip_layers or split.input_layers:  # what is wanted may lie before the earlier cut
        return False
    names = split.backbone.layer_names
    return names.index(earlier.cut) < names.index(split.cut)
