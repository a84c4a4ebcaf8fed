"""Successive halving: give every candidate a little, and more to those that do well."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Measurement:
    """What a trial came to so far.

    Attributes:
        accuracy: Share of the validation images that are recognised, in ``[0, 1]``.
        nc1: NC1 of what the classifier sees; ``nan`` where it is undefined.
        images: How many validation images there were.
    """

    accuracy: float
    nc1: float
    images: int


class Trial(Protocol):
    """A candidate that can be trained a little further."""

    def advance(self, steps: int) -> Measurement:
        """Train for some steps and measure."""


@dataclass(frozen=True)
class Rung:
    """One round: who took part, how far each had been trained, and what came out.

    Attributes:
        steps: Training steps of each candidate, those of earlier rounds included.
        measured: By candidate.
        scores: By candidate; higher is better.
    """

    steps: int
    measured: Mapping[str, Measurement]
    scores: Mapping[str, float]


def score(measured: Mapping[str, Measurement], earlier: Sequence[Measurement] = ()) -> dict[str, float]:
    r"""Estimate the accuracy of each candidate from what was measured, with NC1 as a second witness.

    A measured accuracy p of n images has the variance ``p (1 - p) / n``. NC1 after a short trial tracks accuracy, so
    a line through ``log NC1`` of all measurements predicts it, with some variance of its own. The score is the mean of
    both, weighted by the inverse variances: with few validation images NC1 counts more, with many the accuracy alone.

    Args:
        measured: By candidate.
        earlier: Measurements of earlier rounds, which help to find the line.

    Returns:
        Scores by candidate; the accuracy itself where fewer than four measurements have a finite NC1.

    Source:
        Efron & Morris 1975, Data analysis using Stein's estimator and its generalizations, 10.2307/2285814.

    Example:
        >>> same = {name: Measurement(0.9, nc1, 100) for name, nc1 in zip("abcd", (4.0, 2.0, 1.0, 0.5), strict=True)}
        >>> {name: round(value, 2) for name, value in score(same).items()}
        {'a': 0.9, 'b': 0.9, 'c': 0.9, 'd': 0.9}
    """
    known = [found for found in (*measured.values(), *earlier) if _has_nc1(found)]
    scores = {name: found.accuracy for name, found in measured.items()}
    if len(known) < 4:
        return scores
    accuracies = torch.tensor([found.accuracy for found in known], dtype=torch.float64)
    design = _design(known)
    line = torch.linalg.lstsq(design, accuracies).solution
    noise = torch.tensor([_variance(found) for found in known], dtype=torch.float64).mean()
    around = ((accuracies - design @ line).square().sum() / (len(known) - 2) - noise).clamp(min=1e-8).item()
    for name, found in measured.items():
        if _has_nc1(found):
            weight = around / (around + _variance(found))
            scores[name] = weight * found.accuracy + (1 - weight) * (_design([found]) @ line).item()
    return scores


def _has_nc1(found: Measurement) -> bool:
    return math.isfinite(found.nc1) and found.nc1 > 0


def _design(measured: Sequence[Measurement]) -> Tensor:
    """Return a row ``(1, log NC1)`` for each measurement."""
    return torch.tensor([[1.0, math.log(found.nc1)] for found in measured], dtype=torch.float64)


def _variance(found: Measurement) -> float:
    """Of a share, with Agresti's two successes and two failures, so that it is never zero."""
    share = (found.accuracy * found.images + 2) / (found.images + 4)
    return share * (1 - share) / found.images


def successive_halving(
    candidates: Sequence[str],
    start: Callable[[str], Trial],
    steps: int,
) -> list[Rung]:
    """Find the best of many candidates at the cost of a few full trials.

    Every round has the same budget; after each, the better half goes on from where it was. With n candidates there
    are ``log2 n`` rounds, rounded down.

    Args:
        candidates: Their names, at least one.
        start: Makes the trial of a candidate.
        steps: Training steps in all.

    Returns:
        The rounds; the best of the last one is the choice.

    Raises:
        ValueError: If there is no candidate.

    Source:
        Jamieson & Talwalkar 2016, Non-stochastic best arm identification and hyperparameter optimization,
        arXiv:1502.07943.
    """
    if not candidates:
        raise ValueError("there must be at least one candidate, got none")
    rounds = max(1, math.floor(math.log2(len(candidates))))
    trials: dict[str, Trial] = {}
    left, done, rungs = list(candidates), 0, []
    earlier: list[Measurement] = []
    for _ in range(rounds):
        more = max(1, steps // (rounds * len(left)))
        done += more
        measured = {}
        for name in left:
            if name not in trials:
                trials[name] = start(name)
            measured[name] = trials[name].advance(more)
        rungs.append(Rung(done, measured, score(measured, earlier)))
        earlier += measured.values()
        left = sorted(left, key=rungs[-1].scores.__getitem__, reverse=True)[: max(1, len(left) // 2)]
        trials = {name: trials[name] for name in left}
    return rungs


def spread_out(names: Sequence[str], number: int) -> list[str]:
    """Choose some of many names, each the middle one of an equal share.

    Args:
        names: All of them, in order.
        number: How many, at least 1.

    Returns:
        The chosen ones, in order.

    Example:
        >>> spread_out(list("abcdefghi"), 3)
        ['b', 'e', 'h']
    """
    if number >= len(names):
        return list(names)
    return [names[(2 * index + 1) * len(names) // (2 * number)] for index in range(number)]


def best_of(rung: Rung) -> str:
    """Return the candidate with the highest score of a round."""
    return max(rung.scores, key=rung.scores.__getitem__)
