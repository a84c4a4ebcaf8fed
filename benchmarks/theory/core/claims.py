"""A claim: what was measured, what theory expects, and how far apart they may be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Comparison = Literal["close", "at most", "at least"]
_SIGNS = {"close": "=", "at most": "≤", "at least": "≥"}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement that can fail.

    Attributes:
        name: The statement, in words.
        measured: The number that was found; ``nan`` never passes.
        expected: The number that theory gives.
        tolerance: How far the measured number may lie on the wrong side, or on either side for ``"close"``.
        comparison: Whether the measured number should equal the expected one, or be at most or at least that.
        basis: Where expectation and tolerance come from.
        amends: What the source says, and why that does not hold as stated, where this is the corrected statement.
    """

    name: str
    measured: float
    expected: float = 0.0
    tolerance: float = 0.0
    comparison: Comparison = "close"
    basis: str
    amends: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the measured number is where it should be."""
        excess = self.measured - self.expected
        if self.comparison == "close":
            excess = abs(excess)
        elif self.comparison == "at least":
            excess = -excess
        return excess <= self.tolerance

    @property
    def expectation(self) -> str:
        """The expected number with its sign, e.g. ``"≤ 0.24"``."""
        return f"{_SIGNS[self.comparison]} {number(self.expected)}"


def number(value: float) -> str:
    """Write a number in four significant digits."""
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def largest(values: Iterable[float]) -> float:
    """Return the largest value, or ``nan`` if there is one, which ``max`` may pass over."""
    return float(np.max(list(values)))


def smallest(values: Iterable[float]) -> float:
    """Return the smallest value, or ``nan`` if there is one."""
    return float(np.min(list(values)))
