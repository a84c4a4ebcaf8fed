"""How variants compare over settings: ranks, distance to the best, paired differences, and which one to recommend."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nc_finetune.benchmark.analysis import ranks
from nc_finetune.benchmark.summary import Group, Row, by_group, finite, setting_names
from nc_finetune.benchmark.tables import NOTHING, Cell, Table, accuracy_text, cost_text, measure_column
from nc_finetune.benchmark.variants import Variant, method_label

NEAR = 1.0  # points of accuracy
LIGHT = 10.0  # per cent of the parameters
# What a recommendation is compared with, where it was run.
REFERENCES = ("adapter", "full_ft", "linear_probe")
_NORMAL_QUANTILE = 1.959964  # 95 %, both sides
_FEWEST_DEGREES = 2.0
_YES, _NO = "\N{CHECK MARK}", "\N{BALLOT X}"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How one variant did over all settings that it was run in.

    Attributes:
        label: Its display name.
        rows: Its row of each setting, by setting.
        behind: Points behind the highest mean accuracy of the setting, by setting.
        rank: Mean rank within the settings, 1 for the best; ties share the mean of their ranks.
    """

    label: str
    rows: Mapping[Group, Row]
    behind: Mapping[Group, float]
    rank: float

    @property
    def accuracy(self) -> float:
        """Mean accuracy over settings."""
        return statistics.fmean(row.accuracy or 0.0 for row in self.rows.values())

    @property
    def tuned_percent(self) -> float:
        """The largest share of tuned parameters in per cent; ``nan`` where it is not known."""
        return max(finite(row.tuned_percent for row in self.rows.values()), default=math.nan)

    @property
    def near(self) -> int:
        """In how many settings it is within one point of the best."""
        return sum(points <= NEAR for points in self.behind.values())


def _measured(rows: Sequence[Row]) -> dict[Group, list[Row]]:
    """Gather the rows with an accuracy, by setting."""
    return by_group(row for row in rows if finite([row.accuracy]))


def standings(rows: Sequence[Row], labels: Mapping[Variant, str]) -> list[Standing]:
    """Compare variants over all settings.

    Args:
        rows: The rows of all groups.
        labels: Display names; rows of one name are one variant.

    Returns:
        The standings: those in most settings first, then by the mean distance to the best.
    """
    found: dict[str, dict[Group, tuple[Row, float, float]]] = {}
    for group, members in _measured(rows).items():
        best = max(row.accuracy or 0.0 for row in members)
        for row, rank in zip(members, ranks([-(row.accuracy or 0.0) for row in members]), strict=True):
            found.setdefault(labels[row.variant], {})[group] = (row, best - (row.accuracy or 0.0), rank)
    made = [
        Standing(
            label=label,
            rows={group: row for group, (row, _, _) in places.items()},
            behind={group: behind for group, (_, behind, _) in places.items()},
            rank=statistics.fmean(rank for _, _, rank in places.values()),
        )
        for label, places in found.items()
    ]
    return sorted(made, key=lambda standing: (-len(standing.rows), statistics.fmean(standing.behind.values())))


def recommended(found: Sequence[Standing]) -> Standing | None:
    """Choose what to recommend: the most accurate of what tunes at most 10 % of the parameters everywhere.

    Args:
        found: The standings.

    Returns:
        The one that is closest to the best on average, among those that were run in most settings; ``None`` where
        nothing tunes so little, or there is nothing to compare with.
    """
    most = max((len(standing.rows) for standing in found), default=0)
    light = [standing for standing in found if len(standing.rows) == most and standing.tuned_percent <= LIGHT]
    return light[0] if light and len(found) > 1 else None


def reference_rows(found: Iterable[Standing], method: str, but: Standing) -> dict[Group, Row]:
    """Find what a method came to in each setting: where it has several variants, its most accurate one.

    Args:
        found: The standings.
        method: Name of the method.
        but: The standing that is compared with it.

    Returns:
        Its row by setting.
    """
    best: dict[Group, Row] = {}
    for standing in found:
        for group, row in standing.rows.items():
            known = best.get(group)
            better = known is None or (row.accuracy or 0.0) > (known.accuracy or 0.0)
            if row.variant.method == method and standing.label != but.label and better:
                best[group] = row
    return best


@dataclass(frozen=True)
class Difference:
    """By how much one variant is more accurate than another, in points.

    Attributes:
        points: Difference of the mean accuracies, by setting.
        low: Lower end of the 95 % interval of their mean; ``None`` where seeds are too few to tell.
        high: Upper end.
        speed: How many times as fast an epoch is, by setting.
    """

    points: Mapping[Group, float]
    low: float | None
    high: float | None
    speed: Mapping[Group, float]

    @property
    def mean(self) -> float:
        """Mean over settings."""
        return statistics.fmean(self.points.values())

    @property
    def is_clear(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low is not None and self.high is not None and self.low * self.high > 0

    @property
    def mean_speed(self) -> float | None:
        """Geometric mean over settings."""
        return statistics.geometric_mean(self.speed.values()) if self.speed else None


def difference(ours: Mapping[Group, Row], theirs: Mapping[Group, Row]) -> Difference | None:
    """Compare two variants in the settings that both were run in, seed by seed.

    A seed fixes the training sample, so that differences of the same seed spread less than accuracies do. The interval
    takes the settings as they are and the seeds for random: Student's t with Satterthwaite's degrees of freedom.

    Args:
        ours: Rows of one variant, by setting.
        theirs: Rows of the other one.

    Returns:
        The difference, above zero where ours is more accurate; ``None`` where they share no setting.

    Source:
        Satterthwaite 1946, An approximate distribution of estimates of variance components, 10.2307/3002019.
    """
    both = [group for group in ours if group in theirs]
    if not both:
        return None
    points = {group: (ours[group].accuracy or 0.0) - (theirs[group].accuracy or 0.0) for group in both}
    times = {group: (ours[group].epoch_seconds, theirs[group].epoch_seconds) for group in both}
    speed = {group: slow / fast for group, (fast, slow) in times.items() if fast and slow}
    half = _half_interval([_paired(ours[group], theirs[group]) for group in both])
    mean = statistics.fmean(points.values())
    if half is None:
        return Difference(points, None, None, speed)
    return Difference(points, mean - half, mean + half, speed)


def _paired(ours: Row, theirs: Row) -> list[float]:
    return [value - theirs.accuracies[seed] for seed, value in ours.accuracies.items() if seed in theirs.accuracies]


def _half_interval(samples: Sequence[Sequence[float]]) -> float | None:
    """Half the 95 % interval of the mean of the means of samples; ``None`` where they are too small."""
    if any(len(sample) < 2 for sample in samples):
        return None
    squares = [statistics.variance(sample) / len(sample) for sample in samples]
    total = sum(squares)
    if total == 0:
        return 0.0
    degrees = total**2 / sum(square**2 / (len(sample) - 1) for square, sample in zip(squares, samples, strict=True))
    if degrees < _FEWEST_DEGREES:
        return None
    return _student_quantile(degrees) * math.sqrt(total) / len(samples)


def _student_quantile(degrees: float) -> float:
    """97.5 % quantile of Student's t (Abramowitz & Stegun 1964, 26.7.5), within 4 % from 2 degrees of freedom on."""
    z = _NORMAL_QUANTILE
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )


def _share(number: int, of: int) -> Cell:
    return Cell(f"{_YES if number == of else _NO} {number}/{of}", value=number / of if of else None)


def _mark(points: float, bound: float) -> Cell:
    """Write a difference, and whether it is above a bound."""
    return Cell(f"{_YES if points >= bound else _NO} {points:+.2f}", value=points)


def standings_table(found: Sequence[Standing], rows: Sequence[Row]) -> Table:
    """Tabulate how variants did over all settings, the one that is recommended marked.

    Args:
        found: The standings.
        rows: The rows that they are of.

    Returns:
        The table; empty where there is only one setting or one variant.
    """
    settings = len(_measured(rows))
    if settings < 2 or len(found) < 2:
        return Table((), ())
    choice = recommended(found)
    columns = ("method", "tuned %", f"mean {measure_column(rows)}", "mean rank", "within 1 point of best")
    more = ("points below best", "at most", "not below probe", "epochs vs full FT", "settings")
    lines = tuple(_standing_cells(standing, found, standing is choice, settings) for standing in found)
    return Table((*columns, *more), lines)


def _standing_cells(standing: Standing, found: Sequence[Standing], chosen: bool, settings: int) -> tuple[Cell, ...]:
    probe, full = (
        difference(standing.rows, reference_rows(found, method, standing)) for method in ("linear_probe", "full_ft")
    )
    everywhere = len(standing.rows) == settings  # means over other settings could not be compared
    speed = full.mean_speed if full else None
    tuned = None if math.isnan(standing.tuned_percent) else standing.tuned_percent
    mean, largest = statistics.fmean(standing.behind.values()), max(standing.behind.values())
    return (
        Cell(standing.label, chosen),
        Cell(cost_text("tuned %", tuned), value=tuned),
        Cell(f"{standing.accuracy:.2f}" if everywhere else NOTHING, value=standing.accuracy if everywhere else None),
        Cell(f"{standing.rank:.1f}", value=standing.rank),
        _share(standing.near, len(standing.behind)),
        Cell(f"{mean:.2f}", value=mean),
        Cell(f"{largest:.2f}", value=largest),
        Cell(NOTHING) if probe is None else _share(sum(v >= 0 for v in probe.points.values()), len(probe.points)),
        _or_nothing(speed, _times),
        Cell(str(len(standing.rows)), value=len(standing.rows)),
    )


def choice_table(found: Sequence[Standing], rows: Sequence[Row], labels: Mapping[Variant, str]) -> Table:
    """Tabulate the recommendation setting by setting, beside the best of all and what it is compared with.

    Args:
        found: The standings.
        rows: The rows that they are of.
        labels: Display names.

    Returns:
        The table; empty where nothing is recommended, or there is only one setting.
    """
    choice = recommended(found)
    if choice is None or len(choice.rows) < 2:
        return Table((), ())
    others = {method: reference_rows(found, method, choice) for method in REFERENCES}
    against = {method: found_ for method, theirs in others.items() if (found_ := difference(choice.rows, theirs))}
    best = {group: max(members, key=lambda row: row.accuracy or 0.0) for group, members in _measured(rows).items()}
    timed = [method for method in against if method != "linear_probe" and against[method].speed]
    names, lines = setting_names(by_group(rows)), []
    for group, row in choice.rows.items():
        points = [_or_nothing(against[method].points.get(group), lambda value: _mark(value, 0.0)) for method in against]
        speeds = [_or_nothing(against[method].speed.get(group), _times) for method in timed]
        first = (Cell(names[group]), Cell(accuracy_text(row), value=row.accuracy))
        to_best = _mark(0.0 - choice.behind[group], -NEAR)
        lines.append((*first, to_best, *points, *speeds, Cell(labels[best[group].variant])))
    heads = ("setting", measure_column(rows), "to the best")
    to = [f"to {method_label(method)}" for method in against]
    speeds_to = [f"epochs vs {method_label(method)}" for method in timed]
    return Table((*heads, *to, *speeds_to, "best of all"), tuple(lines))


def _times(value: float) -> Cell:
    return Cell(f"{value:.1f} times", value=value)


def _or_nothing(value: float | None, write: Callable[[float], Cell]) -> Cell:
    return Cell(NOTHING) if value is None else write(value)
