"""Successive halving: give every candidate a little, and more to those that do well."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Protocol


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


def score(measured: Mapping[str, Measurement]) -> dict[str, float]:
    r"""Judge the candidates of a round by accuracy and NC1, which count alike.

    Accuracy on few validation images is mostly noise; NC1 after a short trial tracks what comes out in the end, and has
    another noise. So both are standardised over the candidates, ``z(v) = (v - mean) / sd``, and the score is
    ``z(accuracy) - z(log NC1)``. No weight between the two is needed, and none of the two alone decides.

    Args:
        measured: By candidate.

    Returns:
        Scores by candidate, higher is better. Where NC1 is undefined it counts as the worst that was measured.

    Example:
        >>> found = {"a": Measurement(0.8, 4.0, 100), "b": Measurement(0.9, 2.0, 100)}
        >>> {name: round(value, 6) for name, value in score(found).items()}
        {'a': -2.0, 'b': 2.0}
    """
    known = [found.nc1 for found in measured.values() if math.isfinite(found.nc1) and found.nc1 > 0]
    logs = [math.log(found.nc1 if found.nc1 in known else max(known, default=1.0)) for found in measured.values()]
    accuracies = _standardised([found.accuracy for found in measured.values()])
    return {
        name: accuracy - spread
        for name, accuracy, spread in zip(measured, accuracies, _standardised(logs), strict=True)
    }


def _standardised(values: Sequence[float]) -> list[float]:
    deviation = pstdev(values)
    return [(value - fmean(values)) / deviation if deviation else 0.0 for value in values]


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
    for _ in range(rounds):
        more = max(1, steps // (rounds * len(left)))
        done += more
        measured = {}
        for name in left:
            if name not in trials:
                trials[name] = start(name)
            measured[name] = trials[name].advance(more)
        rungs.append(Rung(done, measured, score(measured)))
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
    """Return the candidate with the highest score of a round; of equal ones, the more accurate."""
    return max(rung.scores, key=lambda name: (rung.scores[name], rung.measured[name].accuracy))
