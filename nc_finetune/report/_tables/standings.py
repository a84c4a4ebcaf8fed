"""How variants compare over settings: ranks, distance to the best, paired differences, and which one to recommend."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from nc_finetune.report._tables.comparison import Difference, difference, gap
from nc_finetune.report._tables.groups import Group, finite, grouped, setting_names
from nc_finetune.report._tables.summary import Row, by_group
from nc_finetune.report._tables.tables import NOTHING, Entry, Table, accuracy_text, measure_column, number
from nc_finetune.report._tables.variants import method_label

NEAR = 1.0  # points of accuracy
LIGHT = 10.0  # per cent of the parameters
# What a recommendation is compared with, where it was run.
REFERENCES = ("adapter", "full_ft", "linear_probe")
_TIMES = "{:.1f} times"
_YES, _NO = "\N{CHECK MARK}", "\N{BALLOT X}"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How one variant did over all settings that it was run in.

    Attributes:
        label: Its display name.
        rows: Its row of each setting, by setting.
        behind: Points behind the best of the setting, by setting: over the seeds that both have a result of.
        rank: Mean rank within the settings, 1 for the best; ties share the mean of their ranks.
        lost: What became of its runs without a result, in words, by setting.
    """

    label: str
    rows: Mapping[Group, Row]
    behind: Mapping[Group, float]
    rank: float
    lost: Mapping[Group, str] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Mean accuracy over settings."""
        return statistics.fmean(row.accuracy or 0.0 for row in self.rows.values())

    @property
    def tuned_percent(self) -> float:
        """The largest share of tuned parameters in per cent; ``nan`` where it is not known."""
        return max(finite(row.tuned_percent for row in self.rows.values()), default=math.nan)

    @property
    def is_light(self) -> bool:
        """Whether it tunes at most 10 % of the parameters, or solves a head and trains nothing."""
        solved = all(run.readout for row in self.rows.values() for run in row.runs)
        return self.tuned_percent <= LIGHT or (solved and not any(row.learning_rates for row in self.rows.values()))

    @property
    def is_control(self) -> bool:
        """Whether it stands there to be compared with, as class priors do."""
        return all(row.variant.method == "control" for row in self.rows.values())

    @property
    def near(self) -> int:
        """In how many settings it is within one point of the best."""
        return sum(points <= NEAR for points in self.behind.values())


def _measured(rows: Sequence[Row]) -> dict[Group, list[Row]]:
    """Gather the rows with an accuracy, by setting."""
    return by_group(row for row in rows if finite([row.accuracy]))


def standings(rows: Sequence[Row]) -> list[Standing]:
    """Compare variants over all settings.

    Returns:
        The standings: those in most settings first, then by the mean distance to the best.
    """
    found: dict[str, dict[Group, tuple[Row, float, float]]] = {}
    for group, members in _measured(rows).items():
        for row in members:
            ahead = [gap(other, row) for other in members if other is not row]
            rank = 1 + sum(0.5 * (points >= 0) + 0.5 * (points > 0) for points in ahead)
            found.setdefault(row.label, {})[group] = (row, max([0.0, *ahead]), rank)
    lost = grouped((row for row in rows if row.lost), lambda row: row.label)
    made = [
        Standing(
            label=label,
            rows={group: row for group, (row, _, _) in places.items()},
            behind={group: behind for group, (_, behind, _) in places.items()},
            rank=statistics.fmean(rank for _, _, rank in places.values()),
            lost={row.group: row.lost_words for row in lost.get(label, [])},
        )
        for label, places in found.items()
    ]
    return sorted(made, key=lambda standing: (-len(standing.rows), statistics.fmean(standing.behind.values())))


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to take, and what that rests on.

    Attributes:
        standing: The variant, over all settings that it was run in.
        within: The same on the runs that the candidates share, by which it was chosen.
        left_out: Labels of candidates that lack some of these runs, and were not considered.
    """

    standing: Standing
    within: Standing
    left_out: tuple[str, ...] = ()


def light(found: Sequence[Standing]) -> list[Standing]:
    """Find what can be recommended if it lost no run: what tunes at most 10 % of the parameters, or trains nothing.

    Returns:
        Those, controls left out; empty where there is nothing to compare with.
    """
    return [standing for standing in found if len(found) > 1 and standing.is_light and not standing.is_control]


def recommended(found: Sequence[Standing]) -> Recommendation | None:
    """Choose what to recommend: the closest to the best of what tunes at most 10 %, or trains nothing.

    Candidates are compared on the same settings and seeds: where some lack a few, on those by which most runs compare,
    and who lacks one of these is left out. What diverged or failed on some seeds is never recommended: its mean is over
    the runs that went well.

    Returns:
        The choice; ``None`` where nothing tunes so little, all that does lost runs, no two of these share a run, or
        there is nothing to compare with.
    """
    sound = [standing for standing in light(found) if not standing.lost]
    shared = _shared_runs(sound)
    if not shared:
        return None
    rows = [row for standing in found for row in standing.rows.values()]
    candidates = {standing.label for standing in sound if _runs_of(standing) >= shared}
    kept = [part for row in rows if (part := _within(row, shared)).accuracies]
    best = next(standing for standing in standings(kept) if standing.label in candidates)
    whole = next(standing for standing in found if standing.label == best.label)
    left_out = tuple(standing.label for standing in sound if standing.label not in candidates)
    return Recommendation(standing=whole, within=best, left_out=left_out)


_Runs = frozenset[tuple[Group, int]]  # by setting and seed


def _runs_of(standing: Standing) -> _Runs:
    return frozenset((group, seed) for group, row in standing.rows.items() for seed in row.accuracies)


def _shared_runs(candidates: Sequence[Standing]) -> _Runs:
    """Find the settings and seeds on which most runs of candidates compare: shared by two or more, if there are two."""
    held = [_runs_of(standing) for standing in candidates]
    fewest = min(2, len(held))

    def compared(shared: _Runs) -> tuple[int, int]:
        number = sum(shared <= runs for runs in held)
        return (number * len(shared) if number >= fewest else 0, len(shared))

    among = {one & other for one, other in itertools.combinations_with_replacement(dict.fromkeys(held), 2)}
    best = max(among, key=compared, default=frozenset())
    return best if compared(best)[0] else frozenset()


def _within(row: Row, shared: _Runs) -> Row:
    """Keep what some seeds of a row came to."""
    accuracies = {seed: value for seed, value in row.accuracies.items() if (row.group, seed) in shared}
    mean = statistics.fmean(accuracies.values()) if accuracies else None
    return replace(row, accuracies=accuracies, accuracy=mean, lost={})


def alternatives(choice: Standing, found: Sequence[Standing]) -> dict[str, Difference]:
    """Compare one variant with each other one, the intervals of all pairs holding together.

    The variant was chosen by the same numbers: intervals for its own comparisons alone would be too narrow.

    Returns:
        Difference by label, the strongest rival first; what shares no run with it is left out.
    """
    others = {
        standing.label: standing.rows
        for standing in found
        if standing is not choice and difference(choice.rows, standing.rows)
    }
    pairs = math.comb(len(others) + 1, 2)
    compared = {label: against for label, rows in others.items() if (against := difference(choice.rows, rows, pairs))}
    return dict(sorted(compared.items(), key=lambda item: item[1].mean))


def reference_rows(found: Iterable[Standing], method: str, but: Standing) -> dict[Group, Row]:
    """Find what a method came to in each setting: where it has several variants, its most accurate one.

    Args:
        found: The standings.
        method: Name of the method.
        but: The standing that is compared with it.
    """
    best: dict[Group, Row] = {}
    for standing in found:
        for group, row in standing.rows.items():
            known = best.get(group)
            better = known is None or (row.accuracy or 0.0) > (known.accuracy or 0.0)
            if row.variant.method == method and standing.label != but.label and better:
                best[group] = row
    return best


def _share(number: int, of: int) -> Entry:
    return Entry(f"{_YES if number == of else _NO} {number}/{of}", value=number / of if of else None)


def _mark(points: float | None, bound: float) -> Entry:
    """Write a difference, and whether it is above a bound."""
    return number(points, f"{_YES if points is not None and points >= bound else _NO} {{:+.2f}}")


def standings_table(found: Sequence[Standing], rows: Sequence[Row]) -> Table:
    """Tabulate how variants did over all settings, the one that is recommended marked.

    Returns:
        The table; empty where there is only one setting or one variant.
    """
    settings = len(_measured(rows))
    if settings < 2 or len(found) < 2:
        return Table()
    choice = recommended(found)
    chosen = choice.standing if choice is not None else None
    columns = ("method", "tuned %", f"mean {measure_column(rows)}", "mean rank", "within 1 point of best")
    more: tuple[str, ...] = ("points below best", "at most", "not below probe", "epochs vs full FT")
    more = (*more, "whole run vs full FT", "settings")
    lines = [_standing_cells(standing, found, standing is chosen, settings) for standing in found]
    if any(standing.lost for standing in found):
        more = (*more, "runs without a result")
        names = setting_names(by_group(rows))
        lines = [(*line, Entry(_lost_text(standing, names))) for line, standing in zip(lines, found, strict=True)]
    return Table((*columns, *more), tuple(lines)).without_empty("whole run vs full FT")


def _lost_text(standing: Standing, names: Mapping[Group, str]) -> str:
    return "; ".join(f"{names[group]}: {words}" for group, words in standing.lost.items()) or NOTHING


def _standing_cells(standing: Standing, found: Sequence[Standing], chosen: bool, settings: int) -> tuple[Entry, ...]:
    probe, full = (
        difference(standing.rows, reference_rows(found, method, standing)) for method in ("linear_probe", "full_ft")
    )
    everywhere = len(standing.rows) == settings  # means over other settings could not be compared
    tuned = None if math.isnan(standing.tuned_percent) else standing.tuned_percent
    return (
        Entry(standing.label, chosen),
        number(tuned),
        number(standing.accuracy if everywhere else None),
        number(standing.rank, "{:.1f}"),
        _share(standing.near, len(standing.behind)),
        number(statistics.fmean(standing.behind.values())),
        number(max(standing.behind.values())),
        Entry(NOTHING) if probe is None else _share(sum(v >= 0 for v in probe.points.values()), len(probe.points)),
        number(full.mean_speed if full else None, _TIMES),
        number(full.mean_cost if full else None, _TIMES),
        number(len(standing.rows), "{}"),
    )


def comparison_table(choice: Standing, found: Sequence[Standing]) -> Table:
    """Tabulate what one variant is ahead of each other one, seed by seed.

    Returns:
        The table, the strongest rival first; empty where nothing can be compared with it.
    """
    tuned = {standing.label: standing.tuned_percent for standing in found}
    lines = tuple(
        (Entry(label), *_comparison_cells(against, tuned[label]))
        for label, against in alternatives(choice, found).items()
    )
    measured = ("points ahead", "95 % interval", "verdict", "pairs", "won / level / lost", "unpaired runs")
    columns = ("against", *measured, "over data sets", "epochs", "whole run", "tuned %")
    return Table(columns, lines).without_empty("over data sets", "whole run") if lines else Table()


def _comparison_cells(against: Difference, tuned: float) -> tuple[Entry, ...]:
    values = against.values
    won, lost = sum(value > 0 for value in values), sum(value < 0 for value in values)
    known = against.low is not None and against.high is not None
    interval = f"{against.low:+.2f} to {against.high:+.2f}" if known else f"none: {against.no_interval}"
    return (
        number(against.mean, "{:+.2f}"),
        Entry(interval, value=against.low),
        Entry(against.verdict),
        number(len(values), "{}"),
        Entry(f"{won} / {len(values) - won - lost} / {lost}", value=won / len(values)),
        number(against.unpaired, "{}"),
        Entry(NOTHING) if against.over_sets is None else Entry("{:+.2f} to {:+.2f}".format(*against.over_sets)),
        number(against.mean_speed, _TIMES),
        number(against.mean_cost, _TIMES),
        number(None if math.isnan(tuned) else tuned),
    )


def choice_table(found: Sequence[Standing], rows: Sequence[Row]) -> Table:
    """Tabulate the recommendation setting by setting, beside the best of all and what it is compared with.

    Returns:
        The table; empty where nothing is recommended, or there is only one setting.
    """
    recommendation = recommended(found)
    if recommendation is None or len(recommendation.standing.rows) < 2:
        return Table()
    choice = recommendation.standing
    others = {method: reference_rows(found, method, choice) for method in REFERENCES}
    against = {method: found_ for method, theirs in others.items() if (found_ := difference(choice.rows, theirs))}
    members = _measured(rows)
    best = {group: max([row, *members[group]], key=partial(gap, theirs=row)) for group, row in choice.rows.items()}
    timed = [method for method in against if method != "linear_probe" and against[method].speed]
    names, lines = setting_names(by_group(rows)), []
    for group, row in choice.rows.items():
        points = [_mark(compared.points.get(group), 0.0) for compared in against.values()]
        speeds = [number(against[method].speed.get(group), _TIMES) for method in timed]
        first = (Entry(names[group]), Entry(accuracy_text(row), value=row.accuracy))
        to_best = _mark(0.0 - choice.behind[group], -NEAR)
        lines.append((*first, to_best, *points, *speeds, Entry(best[group].label)))
    heads = ("setting", measure_column(rows), "to the best")
    to = [f"to {method_label(method)}" for method in against]
    speeds_to = [f"epochs vs {method_label(method)}" for method in timed]
    return Table((*heads, *to, *speeds_to, "best of all"), tuple(lines))
