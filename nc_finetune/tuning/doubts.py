"""Labels that models which were not trained on them do not believe, worst first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nc_finetune.functional import temperature


@dataclass(frozen=True)
class Doubt:
    """An image that is probably of another class than the one that it was given, or a hard one.

    Attributes:
        place: Of the image.
        label: The class that it was given.
        suggested: The most probable class.
        given: Probability of the label.
        probability: Of the suggestion.
    """

    place: int
    label: int
    suggested: int
    given: float
    probability: float


def doubts(logits: Tensor, labels: Tensor, most: int | None = None) -> list[Doubt]:
    """Return the images whose label is not the most probable class, the least probable label first.

    Of the scores that were compared (margins of distances and of logits, agreement of neighbours, scores corrected for
    the confidence of each class, and each of them again after the worst had been taken out) the probability of the
    given label, at one temperature, found wrong labels best, or within 0.02 of the best, on digits, CIFAR-10 and DTD.

    Args:
        logits: Of each image by a model that was not trained on it, shape ``(N, K)``; ``nan`` where there is none.
        labels: Shape ``(N,)``.
        most: How many at the most; ``None`` is all.

    Returns:
        Them, worst first.

    Example:
        >>> logits = torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.0, 8.0]])
        >>> [(one.place, one.suggested) for one in doubts(logits, torch.tensor([0, 1, 1, 0]))]
        [(1, 0), (3, 1)]
    """
    scores = label_scores(logits, labels)
    other = scores.isfinite() & (logits.argmax(1) != labels)
    places = other.nonzero().squeeze(1)
    worst = places[scores[places].argsort(stable=True)][:most]
    if not len(worst):
        return []
    shares = (logits[worst].double() / _temperature(logits, labels)).softmax(1)
    return [
        Doubt(place, label, int(share.argmax()), share[label].item(), share.max().item())
        for place, label, share in zip(worst.tolist(), labels[worst].tolist(), shares, strict=True)
    ]


def label_scores(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probability of each given label, at one temperature for all images: the lower, the more doubtful.

    Args:
        logits: As for :func:`doubts`.
        labels: Likewise.

    Returns:
        Shape ``(N,)``, float64; ``nan`` for images without logits.
    """
    scores = logits.new_full((len(labels),), torch.nan, dtype=torch.float64)
    known = logits.isfinite().all(1)
    if known.any():
        scaled = logits[known].double() / _temperature(logits, labels)
        scores[known] = -F.cross_entropy(scaled, labels[known], reduction="none")
    return scores


def _temperature(logits: Tensor, labels: Tensor) -> float:
    return temperature(logits, labels).item()
