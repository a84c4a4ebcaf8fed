"""Combinations of parameters, of which a few run whenever tests run."""

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import pytest

Place = tuple[int, ...]


def crossed(*axes: Iterable[Any]) -> list[Any]:
    """Return combinations in which any two values of two axes meet, marked as slow but for as few as hold each once.

    Of two axes these are all combinations, of three the fewest that a simple search finds. Where an axis is shorter
    than the longest, it starts over: of three methods and two splits, the combinations (0, 0), (1, 1) and (2, 0) run
    always.
    """
    values = [list(axis) for axis in axes]
    longest = max(len(axis) for axis in values)
    diagonal = {tuple(step % len(axis) for axis in values) for step in range(longest)}
    places = list(product(*(range(len(axis)) for axis in values)))
    slow = _meetings(places, diagonal)
    return [
        pytest.param(
            *(axis[at] for axis, at in zip(values, place, strict=True)), marks=[pytest.mark.slow] * (place in slow)
        )
        for place in places
        if place in diagonal | slow
    ]


def _meetings(places: list[Place], kept: set[Place]) -> set[Place]:
    """Return the places that it takes beside those that are kept, always the one next where most meet anew."""
    pairs = {place: {*combinations(enumerate(place), 2)} for place in places}
    missing = set().union(*pairs.values()).difference(*(pairs[place] for place in kept))
    found: set[Place] = set()
    while missing:
        best = max(places, key=lambda place: len(pairs[place] & missing))
        found.add(best)
        missing -= pairs[best]
    return found
