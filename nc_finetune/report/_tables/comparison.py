"""How far one variant is ahead of another, seed by seed, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from nc_finetune.report._tables.groups import Group, finite
from nc_finetune.report._tables.summary import Row

CONFIDENCE = 0.95
FEWEST_PAIRS = 3
_FEWEST_SETS = 3
_DIGITS = 9  # of a difference in points: what is beyond them is rounding, not a result
Verdict = Literal["ahead", "behind", "not clear"]


def paired(ours: Row, theirs: Row) -> tuple[float, ...]:
    """Subtract the accuracies of one setting, seed by seed, where both have one on the same sample.

    Returns:
        Differences in points, above zero where ours is more accurate; empty where they share no seed. A seed with
        which other images were drawn, as the hashes of both say, is not shared.
    """
    drawn, there = ours.samples, theirs.samples
    shared = [seed for seed in ours.accuracies if seed in theirs.accuracies]
    same = [seed for seed in shared if None in (one := (drawn.get(seed), there.get(seed))) or one[0] == one[1]]
    return tuple(round(ours.accuracies[seed] - theirs.accuracies[seed], _DIGITS) for seed in same)


@dataclass(frozen=True)
class Difference:
    """By how much one variant is more accurate than another, in points, on what both were run on.

    Attributes:
        pairs: Differences of runs of the same setting and seed, by setting.
        unpaired: Runs of either that have no counterpart, and do not count.
        low: Lower end of the interval of the mean; ``None`` where :attr:`no_interval` says why.
        high: Upper end.
        no_interval: Why there is no interval; empty where there is one.
        speed: How many times as fast an epoch is, by setting.
        cost: How many times as much time of the processors the other one's whole run takes, by setting.
        over_sets: Interval of the mean where data sets are random, too; ``None`` of fewer than three.
    """

    pairs: Mapping[Group, tuple[float, ...]]
    unpaired: int
    low: float | None
    high: float | None
    no_interval: str
    speed: Mapping[Group, float]
    cost: Mapping[Group, float] = field(default_factory=dict)
    over_sets: tuple[float, float] | None = None

    @cached_property
    def points(self) -> dict[Group, float]:
        """Mean difference by setting."""
        return {group: round(statistics.fmean(values), _DIGITS) for group, values in self.pairs.items()}

    @property
    def mean(self) -> float:
        """Mean over settings, each of which counts the same."""
        return round(statistics.fmean(self.points.values()), _DIGITS)

    @property
    def values(self) -> list[float]:
        """The differences of all pairs."""
        return [value for values in self.pairs.values() for value in values]

    @property
    def verdict(self) -> Verdict:
        """On which side of zero the interval lies, if on one."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "not clear"
        return "ahead" if self.low > 0 else "behind"

    @property
    def mean_speed(self) -> float | None:
        """Geometric mean over settings."""
        return statistics.geometric_mean(self.speed.values()) if self.speed else None

    @property
    def mean_cost(self) -> float | None:
        """Geometric mean over settings."""
        return statistics.geometric_mean(self.cost.values()) if self.cost else None


def difference(ours: Mapping[Group, Row], theirs: Mapping[Group, Row], comparisons: int = 1) -> Difference | None:
    """Compare two variants on the settings and seeds that both have a result of.

    A seed fixes the training sample, so that differences of the same seed spread less than accuracies do. The interval
    takes the settings as they are and the seeds for random: Student's t with Satterthwaite's degrees of freedom, which
    for a single setting is the paired t-test.

    Args:
        ours: Rows of one variant, by setting.
        theirs: Rows of the other one.
        comparisons: Of how many this is one: intervals hold for all of them together with 95 % (Bonferroni). Where one
            of n variants is compared since it came first, these are all n (n - 1) / 2 pairs, any of which it might have
            been: by n - 1, the best of twenty that are equal is called clear of another one in a quarter of tables.

    Returns:
        The difference, above zero where ours is more accurate; ``None`` where they share no run.

    Source:
        Satterthwaite 1946, An approximate distribution of estimates of variance components, 10.2307/3002019.
        Dunn 1961, Multiple comparisons among means, 10.1080/01621459.1961.10482090.
    """
    pairs = {group: values for group in ours if group in theirs and (values := paired(ours[group], theirs[group]))}
    if not pairs:
        return None
    speed, cost = (
        {
            group: slow / fast
            for group in pairs
            if (fast := getattr(ours[group], part)) and (slow := getattr(theirs[group], part))
        }
        for part in ("epoch_seconds", "processor_seconds")
    )
    number = sum(map(len, pairs.values()))
    unpaired = sum(len(row.accuracies) for row in (*ours.values(), *theirs.values())) - 2 * number
    reason = _why_no_interval(list(pairs.values()))
    confidence = 1 - (1 - CONFIDENCE) / comparisons
    found = Difference(pairs, unpaired, None, None, reason, speed, cost, _over_sets(pairs, ours, confidence))
    if reason:
        return found
    half = _half_interval(list(pairs.values()), confidence)
    return replace(found, low=found.mean - half, high=found.mean + half)


def _over_sets(
    pairs: Mapping[Group, Sequence[float]], ours: Mapping[Group, Row], confidence: float
) -> tuple[float, float] | None:
    """Return the interval of the mean where data sets are random, too: Student's t over these.

    A bootstrap of three to seven sets covers too little, 78 % instead of 95 % with three. Data sets count the same,
    however many settings each has: weighed by these, twice as many intervals as promised miss.
    """
    from scipy import stats  # an extra

    sets: dict[str, list[float]] = {}
    for group, values in pairs.items():
        sets.setdefault(_set_of(ours[group]), []).append(statistics.fmean(values))
    if len(sets) < _FEWEST_SETS:
        return None
    means = [statistics.fmean(values) for values in sets.values()]
    error = statistics.stdev(means) / math.sqrt(len(means))
    half = float(stats.t.ppf((1 + confidence) / 2, len(means) - 1)) * error
    return statistics.fmean(means) - half, statistics.fmean(means) + half


def _set_of(row: Row) -> str:
    """Name the data set of a row, whatever tells it apart from others of its name in a report."""
    config = row.runs[0].config.get("dataset", {}) if row.runs else {}
    return str(config.get("name") or config.get("source") or row.group.dataset)


def _why_no_interval(samples: Sequence[Sequence[float]]) -> str:
    """Say why the spread over seeds cannot be told; empty where it can."""
    number = sum(map(len, samples))
    if number < FEWEST_PAIRS:
        return f"{number} {'pair is' if number == 1 else 'pairs are'} too few, at least {FEWEST_PAIRS} are needed"
    if min(map(len, samples)) < 2:
        return "too few pairs, at least 2 are needed in each setting"
    if not any(np.ptp(sample) for sample in samples):
        return "too few different values, no difference varies with the seed"
    return ""


def _half_interval(samples: Sequence[Sequence[float]], confidence: float) -> float:
    """Return half the interval of the mean of the means of samples."""
    from scipy import stats  # an extra

    numbers = np.array([len(sample) for sample in samples])
    squares = np.array([np.var(sample, ddof=1) for sample in samples]) / numbers
    degrees = squares.sum() ** 2 / (squares**2 / (numbers - 1)).sum()
    quantile = stats.t.ppf((1 + confidence) / 2, degrees)
    return float(quantile * math.sqrt(squares.sum()) / len(samples))


def gap(ours: Row, theirs: Row) -> float:
    """Say how many points one row is above another of its setting: over shared seeds, or of means if there are none."""
    values = paired(ours, theirs) or [(ours.accuracy or 0.0) - (theirs.accuracy or 0.0)]
    return round(statistics.fmean(values), _DIGITS)


def best_rows(rows: Sequence[Row]) -> list[Row]:
    """Find the most accurate rows of one setting.

    Returns:
        Those that no other one is above on the seeds that both have, several where they are level; where there is none,
        as each is below another, those with the highest mean. Empty if nothing has an accuracy.
    """
    known = [row for row in rows if finite([row.accuracy])]
    best = [row for row in known if all(gap(row, other) >= 0 for other in known)]
    highest = max((row.accuracy or 0.0 for row in known), default=None)
    return best or [row for row in known if row.accuracy == highest]
