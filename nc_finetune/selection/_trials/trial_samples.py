"""The images that trials share: decoded once, and run through a frozen prefix once a trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nc_finetune.backbones import FrozenPrefix, PrefixOutput, SplitError, resumed
from nc_finetune.classifier import ImageClassifier
from nc_finetune.data import ImageData, training_folds
from nc_finetune.data.splits.stratified import draw_stratified
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
        places: Where the N samples are in the inputs, shape ``(N,)``, where these hold more; ``None`` where not.
    """

    inputs: Tensor | PrefixOutput
    labels: Tensor
    split: FrozenPrefix | None = None
    places: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: Tensor | slice) -> Samples:
        """Return some of them."""
        wanted = rows if self.places is None else self.places[rows]
        inputs = self._inputs(lambda value: value[wanted])
        return replace(self, inputs=inputs, labels=self.labels[rows], places=None)

    def only(self, rows: Tensor) -> Samples:
        """Return some of them without a copy of their inputs."""
        places = rows if self.places is None else self.places[rows]
        return replace(self, labels=self.labels[rows], places=places)

    def batches(self, size: int) -> Iterator[Samples]:
        """Return all of them in order, in batches."""
        yield from (self.rows(slice(start, start + size)) for start in range(0, len(self), size))

    def to(self, device: torch.device) -> Samples:
        """Move them to a device."""
        return replace(self, inputs=self._inputs(lambda value: value.to(device)), labels=self.labels.to(device))

    def images(self) -> AbstractContextManager[Tensor]:
        """Return a context that gives images for the model, or blanks with which it goes on from the cut."""
        return resumed(self.inputs, self.split)

    def _inputs(self, change: Callable[[Tensor], Tensor]) -> Tensor | PrefixOutput:
        if isinstance(self.inputs, dict):
            return {name: change(value) for name, value in self.inputs.items()}
        return change(self.inputs)


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


@dataclass(frozen=True)
class FoldedSamples:
    """Training images, and which of them are trained on and judged by in each fold.

    Attributes:
        whole: Of the training split, up to 2,000.
        folds: Rows of these that are trained on, and those that are held out.
        num_classes: K.
        batch_size: Samples a step.
    """

    whole: Samples
    folds: list[tuple[Tensor, Tensor]]
    num_classes: int
    batch_size: int

    @classmethod
    def load(cls, data: ImageData, number: int, seed: int = 0) -> FoldedSamples:
        """Decode training images once, without augmentation, and divide them into folds.

        Args:
            data: Where they come from; neither validation nor test split is touched.
            number: Folds; see :func:`~nc_finetune.data.training_folds`.
            seed: Of the folds, and which images, where there are more.
        """
        folds = training_folds(data, number, seed)
        whole, images = _load(data, "train", _MOST_IMAGES, seed), data.images("train")
        drawn = draw_stratified(images.labels, _MOST_IMAGES, seed).tolist()
        items = torch.tensor([item for item in drawn if images.bad is None or not images.bad[images.indices[item]]])
        held = [torch.isin(items, torch.tensor(fold.held_out)) for fold in folds]
        rows = [((~part).nonzero().flatten(), part.nonzero().flatten()) for part in held if part.any()]
        return cls(whole, rows, data.num_classes, data.batch_size)

    def divided(self, whole: Samples) -> list[TrialSamples]:
        """Return each fold of the images, or of what a prefix gave of them."""
        return [
            TrialSamples(whole.only(trained), whole.only(held), self.num_classes, self.batch_size)
            for trained, held in self.folds
        ]


def _load(data: ImageData, split: str, number: int, seed: int) -> Samples:
    images, labels = zip(*subset_batches(data, split, number, seed), strict=True)
    return Samples(torch.cat(images), torch.cat(labels))


def behind_prefix(
    model: ImageClassifier, sources: Sequence[Samples], batch_size: int, before: Sequence[Samples] | None = None
) -> list[Samples]:
    """Run everything through the frozen prefix of a model once, where the network can be cut and there is room.

    Args:
        model: Whose method says where the prefix ends.
        sources: Images.
        batch_size: Images at a time.
        before: What the prefix of an earlier block gave of them, to go on from.

    Returns:
        What the prefix gave of each source, or the sources as they are.
    """
    split = try_split(model, sources[0])
    if split is None:
        return list(sources)
    goes_on = before is not None and can_go_on(before[0].split, split)
    parts = before if before is not None and goes_on else sources
    kept = [through_prefix(part, split, batch_size) for part in parts]
    found = [part for part in kept if part is not None]
    return list(sources) if len(found) < len(parts) else found


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
