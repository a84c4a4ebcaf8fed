"""Which learning rate: the best of a list, which grows where the best lies at its edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FACTOR = 3.0
MOST_EXTENSIONS = 4
_DIGITS = 6  # significant ones of a rate: 0.009, and not 0.009000000000000001


@dataclass(frozen=True)
class RateSearch:
    """What was tried, and what was best.

    Attributes:
        scores: The score of each rate in the order of trying, higher is better; ``None`` where training diverged.
        chosen: The rate with the highest score, the one tried first of several; ``None`` where all diverged.
        extensions: How often the list was extended.

    Example:
        >>> RateSearch({0.001: 0.7, 0.003: 0.9, 0.01: None}, 0.003).bracketed
        True
    """

    scores: dict[float, float | None]
    chosen: float | None
    extensions: int = 0

    @property
    def bracketed(self) -> bool:
        """Whether a lower and a higher rate did no better; one that diverged did worse."""
        return self.chosen is not None and min(self.scores) < self.chosen < max(self.scores)


def is_better(score: float | None, than: float | None) -> bool:
    """Tell whether a score is higher; ``nan`` is lower than all numbers, ``None`` than everything.

    Example:
        >>> is_better(0.5, float("nan")), is_better(float("nan"), None), is_better(0.5, 0.5)
        (True, True, False)
    """
    return _rank(score) > _rank(than)


def _rank(score: float | None) -> tuple[int, float]:
    if score is None:
        return 0, 0.0
    return (1, 0.0) if math.isnan(score) else (2, score)


def search_rates(
    rates: Sequence[float], score: Callable[[float], float | None], extensions: int = MOST_EXTENSIONS
) -> RateSearch:
    """Try every rate of a list, and rates beyond it while the best one lies at its edge.

    Each extension tries one more: three times the highest, or a third of the lowest. Of a list of one, both edges are
    that rate. Where all diverge, lower ones are tried.

    Args:
        rates: The list, at least one, all above 0.
        score: From a rate to its score, higher is better; ``None`` where training diverged. Called once a rate.
        extensions: How often the list may be extended; 0 tries what is listed.

    Returns:
        What was tried, and the best; not ``bracketed`` where the extensions did not suffice.

    Raises:
        ValueError: If there is no rate, or one is not above 0.

    Example:
        >>> found = search_rates([1e-3, 3e-3], lambda rate: -abs(rate - 0.02))
        >>> found.chosen, found.extensions, found.bracketed
        (0.027, 3, True)
    """
    if not rates or min(rates) <= 0:
        raise ValueError(f"there must be at least one learning rate, and all above 0, got {list(rates)}")
    scores = {rate: score(rate) for rate in dict.fromkeys(rates)}
    extended = 0
    while extended < extensions:
        best = _best(scores)
        if best is None or (best == min(scores) and best != max(scores)):
            more = min(scores) / FACTOR
        elif best == max(scores):
            # Of a list of one, higher is tried first, and then lower.
            more = max(scores) * FACTOR
        else:
            break
        more = float(f"{more:.{_DIGITS}g}")
        scores[more] = score(more)
        extended += 1
    return RateSearch(scores, _best(scores), extended)


def _best(scores: dict[float, float | None]) -> float | None:
    best: float | None = None
    for rate, value in scores.items():
        if value is not None and (best is None or is_better(value, scores[best])):
            best = rate
    return best
