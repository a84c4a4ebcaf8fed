"""Successive halving: give every candidate a little, and more to those that do well."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

_HALF_THE_NC1 = 0.05  # in shares of accuracy; of nine choices of benchmarks/key_layer one differs from 0.01 to 0.07


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
    r"""Judge the candidates of a round by accuracy, with NC1 as a second witness.

    Accuracy on few validation images is mostly noise; NC1 after a short trial tracks what comes out in the end, and has
    another noise: ``score = accuracy - 0.05 log2(NC1)``, so that half the NC1 counts as five points.

    Args:
        measured: By candidate.

    Returns:
        Scores by candidate, higher is better. Where NC1 is undefined it counts as the worst that was measured.

    Example:
        >>> score({"a": Measurement(0.80, 4.0, 100), "b": Measurement(0.85, 2.0, 100)})
        {'a': 0.7, 'b': 0.8}
    """
    known = [found.nc1 for found in measured.values() if math.isfinite(found.nc1) and found.nc1 > 0]
    worst = max(known, default=1.0)
    return {
        name: round(found.accuracy - _HALF_THE_NC1 * math.log2(found.nc1 if found.nc1 in known else worst), 9)
        for name, found in measured.items()
    }


def successive_halving(
    candidates: Sequence[str],
    start: Callable[[str], Trial],
    steps: int,
    report: Callable[[str], None] | None = None,
) -> list[Rung]:
    """Find the best of many candidates at the cost of a few full trials.

    Every round has the same budget; after each, the better half goes on from where it was. With n candidates there
    are ``log2 n`` rounds, rounded down.

    Args:
        candidates: Their names, at least one.
        start: Makes the trial of a candidate.
        steps: Training steps in all.
        report: Told what each trial came to, a line each; ``None`` tells nobody.

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
    rounds = rounds_of(len(candidates))
    trials: dict[str, Trial] = {}
    left, done, rungs = list(candidates), 0, []
    for number in range(1, rounds + 1):
        more = max(1, steps // (rounds * len(left)))
        done += more
        measured = {}
        for name in left:
            if name not in trials:
                trials[name] = start(name)
            found = measured[name] = trials[name].advance(more)
            if report is not None:
                place = f"round {number} of {rounds}, trial {len(measured)} of {len(left)}"
                report(f"{place}: {name}, {100 * found.accuracy:.1f} %, NC1 {found.nc1:.3g} after {done} steps")
        rungs.append(Rung(done, measured, score(measured)))
        left = sorted(left, key=rungs[-1].scores.__getitem__, reverse=True)[: max(1, len(left) // 2)]
        trials = {name: trials[name] for name in left}
    return rungs


def rounds_of(candidates: int) -> int:
    """Return how many rounds so many candidates take.

    Example:
        >>> [rounds_of(number) for number in (1, 2, 5, 8)]
        [1, 1, 2, 3]
    """
    return max(1, math.floor(math.log2(candidates)))


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
