"""Sets of classes that hold the right one as often as is asked for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nc_finetune.functional.class_statistics import as_labels

_EXACT = 1e-9  # of a rank: 0.9 x 10 is not 9.000000000000002


def conformal_scores(probabilities: Tensor, target: Tensor) -> Tensor:
    """Say how badly probabilities fit the right class: ``1 - p_y``.

    Args:
        probabilities: Shape ``(N, K)``, of samples that the classifier was not fitted to.
        target: Shape ``(N,)``, integers in ``[0, K)``.

    Returns:
        In ``[0, 1]``, shape ``(N,)``; ``nan`` where probabilities are.

    Raises:
        ValueError: If the shapes do not fit, or a label is out of range.

    Source:
        Sadinle, Lei & Wasserman 2019, Least ambiguous set-valued classifiers, arXiv:1609.00451.

    Example:
        >>> conformal_scores(torch.tensor([[0.75, 0.25]]), torch.tensor([1]))
        tensor([0.7500])
    """
    if probabilities.ndim != 2 or target.shape != probabilities.shape[:1]:
        given = tuple(probabilities.shape), tuple(target.shape)
        raise ValueError(f"probabilities must have shape (N, K) and target (N,), got {given[0]} and {given[1]}")
    labels = as_labels(target, probabilities.new_zeros(probabilities.shape[1]))
    return 1 - probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)


def conformal_rank(number: int, coverage: float) -> int:
    """Return which of the sorted scores of so many samples is the threshold of a coverage, from 1 on.

    ``ceil((n + 1) coverage)``: the score of a new sample is as likely to take any place among the others. It is above
    ``number`` where there are too few to tell: sets then hold all classes.

    Args:
        number: n, samples.
        coverage: In ``(0, 1)``.

    Raises:
        ValueError: If the coverage is out of range.

    Example:
        >>> conformal_rank(99, 0.9), conformal_rank(5, 0.9)
        (90, 6)
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, such as 0.9, got {coverage}")
    return math.ceil((number + 1) * coverage - _EXACT)


def conformal_threshold(scores: Tensor, coverage: float) -> Tensor:
    """Return the score up to which classes belong to a set, so that it holds the right one with a probability.

    For a new sample like those that were scored the probability is at least ``coverage``, and at most ``1 / (n + 1)``
    above it, on average over samples of all classes (split conformal prediction: Vovk, Gammerman & Shafer 2005;
    Angelopoulos & Bates 2021, arXiv:2107.07511). With scores by leaving one out, or by folds, that is so in practice,
    and for stable classifiers in theory (Barber et al. 2021, arXiv:1905.02928).

    Args:
        scores: :func:`conformal_scores`, shape ``(n,)``; those that are not finite are left out.
        coverage: In ``(0, 1)``.

    Returns:
        A scalar; infinite where there are too few scores.

    Raises:
        ValueError: If the coverage is out of range.

    Example:
        >>> conformal_threshold(torch.arange(1, 20) / 20, 0.9).item()
        0.89...
        >>> conformal_threshold(torch.tensor([0.1, 0.2]), 0.9).item()
        inf
    """
    known = scores[scores.isfinite()].sort().values
    rank = conformal_rank(len(known), coverage)
    return scores.new_tensor(torch.inf) if rank > len(known) else known[rank - 1]
