"""Classifiers that were judged on training images which they were not trained on, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nc_finetune.tuning.candidates import Candidate
from nc_finetune.tuning.estimate import Estimate, estimate_accuracy
from nc_finetune.tuning.readouts import FOLDS, TURNS, Readout


@dataclass(frozen=True)
class Judged:
    """A classifier and what it says of training images that it was not trained on.

    Attributes:
        name: What it is, in words.
        image_size: Height and width of its images.
        logits: By what the other folds teach, shape ``(N, K)``; ``nan`` for images on which it was not judged.
        seconds: What judging took.
        readout: The readout, if it is one.
        candidate: Otherwise the way in which it is tuned.
        epochs: And for how long.
        backbone: Name of the network.
        scales: Of the logits of the readout and of its own, where it is their mean; ``None`` where it stands alone.
    """

    name: str
    image_size: int
    logits: Tensor
    seconds: float
    readout: Readout | None = None
    candidate: Candidate | None = None
    epochs: int = 0
    scales: tuple[float, float] | None = None
    backbone: str = ""


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return which images are recognised, bool of shape ``(N,)``."""
    return logits.argmax(1) == labels


def common_places(judged: Sequence[Judged]) -> Tensor:
    """Return the places of the images on which all were judged."""
    known = torch.stack([one.logits.isfinite().all(1) for one in judged]).all(0)
    return known.nonzero().squeeze(1)


def best_of(judged: Sequence[Judged], labels: Tensor) -> Judged:
    """Return the one with most images right, of equal ones the first, which costs least.

    Args:
        judged: From cheap to dear.
        labels: Of all images, shape ``(N,)``.
    """
    common = common_places(judged)
    if not len(common):  # too few images for folds: readouts alone
        whole = [one.readout.logits if one.readout else one.logits for one in judged]
        scores = [right(logits, labels).double().mean().item() for logits in whole]
        return judged[max(range(len(judged)), key=lambda place: (scores[place], -place))]
    scores = [right(one.logits, labels)[common].double().mean().item() for one in judged]
    return judged[max(range(len(judged)), key=lambda place: (scores[place], -place))]


def estimate_best(judged: Sequence[Judged], labels: Tensor, seed: int = 0, lost: Sequence[Judged] = ()) -> Estimate:
    """Estimate the accuracy of the best on new images; see :func:`estimate_accuracy`.

    A readout is judged by those of nearly all images, since folds teach less than all images do.

    Args:
        judged: From cheap to dear.
        labels: Of all images, shape ``(N,)``.
        seed: Of the estimate.
        lost: Others that the choice was among.
    """
    best, common = best_of(judged, labels), common_places([*judged, *lost])
    found = None
    if len(common):
        every = [right(one.logits, labels)[common] for one in (*judged, *lost)]
        found = estimate_accuracy(every, seed, folds=FOLDS)
    if best.readout is None:
        assert found is not None  # noqa: S101 - what is tuned was judged on folds
        return found
    known = best.readout.logits.isfinite().all(1)
    if not known.any():
        return Estimate(float("nan"), 0.0, 1.0, 0)
    alone = estimate_accuracy([right(best.readout.logits, labels)[known]], folds=TURNS)
    return alone if found is None else alone.less(found.optimism)
