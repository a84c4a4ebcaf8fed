"""Which learning rate: the best of a list, which grows where the best lies at its edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

FACTOR = 3.0
MOST_EXTENSIONS = 4
Key = TypeVar("Key", bound=Hashable)
_DIGITS = 6  # significant ones of a rate: 0.009, and not 0.009000000000000001


@dataclass(frozen=True)
class OptionSearch:
    """Which values of options were tried beside rates, and what was best.

    Attributes:
        rates: The search of the rate with the chosen values.
        chosen: Value of each option.
        scores: The score of each value of each option, by its text, at the rate that was best for the first values.
        edges: Options whose best value lies at the edge of numbers that were tried.
    """

    rates: RateSearch
    chosen: dict[str, Any]
    scores: dict[str, dict[str, float | None]]
    edges: tuple[str, ...] = ()


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


def _best(scores: Mapping[Key, float | None]) -> Key | None:
    best: Key | None = None
    for key, value in scores.items():
        if value is not None and (best is None or is_better(value, scores[best])):
            best = key
    return best


def search_options(
    rates: Sequence[float],
    candidates: Mapping[str, Sequence[Any]],
    score: Callable[[dict[str, Any], float], float | None],
    extensions: int = MOST_EXTENSIONS,
) -> OptionSearch:
    """Choose values of options and a rate: the rate for the first values, then option by option, then the rate again.

    Numbers at whose edge the best one lies are extended by a factor of 2, as rates are by 3; so are mappings of one
    number, such as ``{"lora_alpha": 16}``.

    Args:
        rates: As for :func:`search_rates`.
        candidates: Values of each option, the usual one first.
        score: From values and a rate to a score, as for :func:`search_rates`; asked again for what it knows.
        extensions: How often a list may be extended.

    Returns:
        What was tried, and the best.

    Example:
        >>> found = search_options([0.1], {"rank": [4, 8]}, lambda options, rate: -abs(options["rank"] - 20) - rate)
        >>> found.chosen, found.scores["rank"]
        ({'rank': 16}, {'4': -16.00..., '8': -12.00..., '16': -4.00..., '32': -12.00...})
    """
    chosen = {name: values[0] for name, values in candidates.items()}
    search = search_rates(rates, lambda rate: score(chosen, rate), extensions)
    first, tried, edges = dict(chosen), {}, []
    for name, values in candidates.items():
        if search.chosen is None:
            break
        rate, listed = search.chosen, {str(value): value for value in values}
        scores = {text: score(chosen | {name: value}, rate) for text, value in listed.items()}
        for _ in range(extensions):
            more = _beyond(listed, scores)
            if more is None:
                break
            listed[str(more)] = more
            scores[str(more)] = score(chosen | {name: more}, rate)
        chosen[name], tried[name] = listed[_best(scores) or str(values[0])], scores
        edges += [name] if _beyond(listed, scores) is not None else []
    if chosen != first and search.chosen is not None:
        around = [search.chosen, search.chosen / FACTOR, search.chosen * FACTOR]  # of equal scores the first counts
        rounded = [float(f"{rate:.{_DIGITS}g}") for rate in around]
        search = search_rates(rounded, lambda rate: score(chosen, rate), extensions)
    return OptionSearch(search, chosen, tried, tuple(edges))


def _beyond(listed: Mapping[str, Any], scores: Mapping[str, float | None]) -> Any:
    """Return the value beyond the edge at which the best one lies; ``None`` where it is inside, or there is no order.

    A mapping with one number, the same one in all, is ordered as that number is.
    """
    best = _best(scores)
    places = {_place_of_number(value) for value in listed.values()}
    if best is None or len(places) > 1 or None in places:
        return None
    numbers = [_number_in(value) for value in listed.values()]
    number = _number_in(listed[best])
    if min(numbers) <= 0:
        return None
    if number == max(numbers):
        more: int | float = 2 * number
    elif number == min(numbers):
        more = number / 2 if isinstance(number, float) else number // 2
    else:
        return None
    if more <= 0:
        return None
    return {next(iter(listed[best])): more} if isinstance(listed[best], Mapping) else more


def _place_of_number(value: Any) -> str | None:
    """Return under which name a value holds its number, ``""`` for a number itself; ``None`` where it holds none."""
    name, number = next(iter(value.items())) if isinstance(value, Mapping) and len(value) == 1 else ("", value)
    return str(name) if isinstance(number, (int, float)) and not isinstance(number, bool) else None


def _number_in(value: Any) -> int | float:
    number: int | float = next(iter(value.values())) if isinstance(value, Mapping) else value
    return number
