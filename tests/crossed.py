"""All combinations of parameters, of which a few run whenever tests run."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def crossed(*axes: Iterable[Any]) -> list[Any]:
    """Return every combination, marked as slow but for as few as hold each value of each axis once.

    Where an axis is shorter than the longest, it starts over: of three methods and two splits, the combinations
    (0, 0), (1, 1) and (2, 0) run always.
    """
    values = [list(axis) for axis in axes]
    longest = max(len(axis) for axis in values)
    diagonal = {tuple(step % len(axis) for axis in values) for step in range(longest)}
    places = product(*(range(len(axis)) for axis in values))
    quick = [place in diagonal for place in places]
    return [
        case if always else pytest.param(*case, marks=pytest.mark.slow)
        for always, case in zip(quick, product(*values), strict=True)
    ]
