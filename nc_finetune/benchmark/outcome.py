"""The outcome of a benchmark in words: what is recommended, what it gains over the rest, what speaks against it."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from nc_finetune.benchmark.analysis import correlation_text, nc1_correlation, wins
from nc_finetune.benchmark.results import Result
from nc_finetune.benchmark.standings import (
    LIGHT,
    NEAR,
    REFERENCES,
    Difference,
    Standing,
    difference,
    recommended,
    reference_rows,
    standings,
)
from nc_finetune.benchmark.summary import (
    Group,
    Row,
    best_rows,
    by_group,
    common_words,
    finished_runs,
    group_of,
    setting_names,
)
from nc_finetune.benchmark.tables import accuracy_text
from nc_finetune.benchmark.variants import Variant, method_label

_MOST_GROUPS_IN_WORDS = 3
_STATUS_WORDS = {"ok": "finished", "diverged": "diverged", "failed": "failed"}


def count(number: int, noun: str) -> str:
    """Write a number of things.

    Example:
        >>> count(1, "run"), count(2, "run")
        ('1 run', '2 runs')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def status_words(results: Sequence[Result]) -> str:
    """Count the runs by what became of them.

    Args:
        results: Runs.

    Returns:
        One sentence.
    """
    counts = collections.Counter(str(run.status) for run in results)
    words = [f"{counts[status]} {word}" for status, word in _STATUS_WORDS.items() if counts[status]]
    return f"{count(len(results), 'run')}: {', '.join(words)}."


def _seed_words(rows: Sequence[Row]) -> str:
    """Say how many seeds the means are over."""
    if not rows:
        return ""
    fewest, most = min(row.seeds for row in rows), max(row.seeds for row in rows)
    if most == 1:
        return "Every value is of a single seed."
    return f"Every mean is over {most if fewest == most else f'{fewest} to {most}'} seeds."


def _share_words(row: Row) -> str:
    share = "" if row.tuned_percent is None else f", {row.tuned_percent:.2f} % of the parameters tuned"
    return f"{accuracy_text(row)} %{share}"


def _group_words(name: str, rows: Sequence[Row], labels: Mapping[Variant, str]) -> str:
    """Say who came first in a group, and who second."""
    group, best = rows[0].group, best_rows(rows)
    if not best:
        return f"On {name}, no run has a test result."
    named = " and ".join(f"{labels[row.variant]} ({_share_words(row)})" for row in best)
    if len(rows) == 1:
        return f"On {name}, there is only {named}."
    second = best_rows([row for row in rows if row not in best])
    behind = f", followed by {labels[second[0].variant]} ({_share_words(second[0])})" if second else ""
    return f"On {name}, the highest mean {group.measure} is that of {named}{behind}."


def _wins_words(rows: Sequence[Row], labels: Mapping[Variant, str]) -> str:
    """Say how often each method came first, where naming every group would be too long."""
    counts = wins(rows, labels)
    named = "; ".join(f"{label} in {number}" for label, number in counts.most_common())
    return f"Of {len(by_group(rows))} settings (data set, backbone, training size), the best is {named}."


def _correlation_words(finished: Sequence[Result]) -> str:
    """Say how accuracy goes with NC1."""
    found = nc1_correlation(finished)
    if found is None:
        return ""
    value, interval = correlation_text(found)
    settings = len(set(map(group_of, finished)))
    across = " (across settings, whose NC1 differ for other reasons, too)" if settings > 1 else ""
    measure = finished[0].measure
    if found.low * found.high <= 0:
        verdict = f"{measure} and NC1 show no clear relation"
    else:
        verdict = f"{measure} {'falls' if found.value < 0 else 'rises'} as NC1 grows"
    return f"Over {found.number} runs{across}, {verdict}: Spearman {value}, 95 % interval {interval}."


def _worst(points: Mapping[Group, float]) -> tuple[Group, float]:
    return min(points.items(), key=lambda item: item[1])


def _on_average(settings: int) -> str:
    return " on average" if settings > 1 else ""


def _choice_words(choice: Standing) -> str:
    number = len(choice.rows)
    where, mean = (f"over {number} settings ", " on average") if number > 1 else ("", "")
    measure = next(iter(choice.rows)).measure
    return (
        f"Recommended: {choice.label}, with {choice.tuned_percent:.2f} % of the parameters tuned: the highest "
        f"{measure} {where}({choice.accuracy:.2f} %{mean}) of all that tune at most {LIGHT:g} %."
    )


def _best_words(choice: Standing) -> str:
    """Say how far the recommendation is from the best of all."""
    number, behind = len(choice.behind), choice.behind
    if not any(behind.values()):
        return "Nothing is better" + (" in any setting." if number > 1 else ".")
    mean, (group, largest) = statistics.fmean(behind.values()), max(behind.items(), key=lambda item: item[1])
    if number == 1:
        return f"It is {largest:.2f} points below the best of all."
    where = setting_names(behind)[group]
    return (
        f"It is {mean:.2f} points below the best of each setting on average, at most {largest:.2f} ({where}); "
        f"within {NEAR:g} point in {choice.near} of {number}."
    )


def _speed_words(found: Difference) -> str:
    speed = found.mean_speed
    if speed is None:
        return ""
    text = f"{speed:.1f} times as fast" if speed >= 1 else f"{1 / speed:.1f} times as slow"
    ends = [min(found.speed.values()), max(found.speed.values())]
    if speed < 1:
        ends = [1 / end for end in reversed(ends)]
    return f", epochs {text}" + (f" ({ends[0]:.1f} to {ends[1]:.1f})" if len(found.speed) > 1 else "")


def _interval_words(found: Difference) -> str:
    if found.low is None or found.high is None:
        return ""
    return f" (95 % interval {found.low:+.2f} to {found.high:+.2f})"


def _reference_words(name: str, found: Difference) -> str:
    """Compare the recommendation with one other method."""
    number = len(found.points)
    ahead = sum(points > 0 for points in found.points.values())
    places = f", ahead in {ahead} of {number} settings" if number > 1 else ""
    points = f"{found.mean:+.2f} points{_on_average(number)}{_interval_words(found)}"
    return f"Against {name}: {points}{places}{_speed_words(found)}."


def _objections(choice: Standing, found: Sequence[Standing], against: Mapping[str, Difference]) -> Iterator[str]:
    """Say what the numbers hold against the recommendation."""
    far = {group: points for group, points in choice.behind.items() if points > NEAR}
    if far:
        group, points = max(far.items(), key=lambda item: item[1])
        yield (
            f"it is more than {NEAR:g} point below the best in {len(far)} of {len(choice.behind)} settings, most on "
            f"{setting_names(choice.rows)[group]} ({points:.2f})"
        )
    for name, compared in against.items():
        yield from _doubts(name, compared)
    yield from _rivals(choice, found)
    yield from _collapse_doubt(choice, found)


def _doubts(name: str, found: Difference) -> Iterator[str]:
    """Say where another method is level, ahead, or faster."""
    if found.mean < 0:
        clear = "" if found.is_clear else ", which is within the spread over seeds"
        yield f"{name} is {-found.mean:.2f} points better{_on_average(len(found.points))}{clear}"
    elif not found.is_clear:
        yield f"its lead over {name} is within the spread over seeds"
    group, points = _worst(found.points)
    if points < 0 <= found.mean:
        lost = sum(value < 0 for value in found.points.values())
        where = setting_names(found.points)[group]
        yield f"it is below {name} in {count(lost, 'setting')}, most on {where} ({points:+.2f})"
    if (found.mean_speed or math.inf) < 1 and name != method_label("linear_probe"):
        yield f"its epochs are slower than those of {name}"


def _rivals(choice: Standing, found: Sequence[Standing]) -> Iterator[str]:
    """Name what is more accurate on average at a higher price, or nearly as accurate at a lower one."""
    same = [other for other in found if other is not choice and other.rows.keys() == choice.rows.keys()]
    for other in same:
        gain = other.accuracy - choice.accuracy
        if gain > 0 and other.rows and next(iter(other.rows.values())).variant.method not in REFERENCES:
            yield f"{other.label}, which tunes {other.tuned_percent:.2f} %, is {gain:.2f} points better"
    lighter = [other for other in same if other.tuned_percent < 0.5 * choice.tuned_percent and _is_near(other, choice)]
    if lighter:
        least = min(lighter, key=lambda other: other.tuned_percent)
        yield f"{least.label} tunes {least.tuned_percent:.2f} % and is within {NEAR:g} point of it on average"


def _is_near(other: Standing, choice: Standing) -> bool:
    return choice.accuracy - other.accuracy <= NEAR


def _collapse_doubt(choice: Standing, found: Sequence[Standing]) -> Iterator[str]:
    """Say where what collapses more is less accurate: NC1 does not explain it then."""
    full = reference_rows(found, "full_ft", choice)
    pairs = [(row.nc1, full[group].nc1) for group, row in choice.rows.items() if group in full]
    higher = sum(ours > theirs for ours, theirs in pairs if ours is not None and theirs is not None)
    if higher:
        places = f" in {higher} of {len(pairs)} settings" if len(pairs) > 1 else ""
        yield f"its NC1 is above that of full FT{places}: collapse does not explain it"


def _faster_words(choice: Standing, found: Sequence[Standing]) -> str:
    """Name what is within a point of the recommendation on average and has the fastest epochs."""
    speeds = {}
    for other in found:
        compared = difference(other.rows, choice.rows) if other.rows.keys() == choice.rows.keys() else None
        if other is not choice and compared and _is_near(other, choice) and (compared.mean_speed or 0.0) > 1.1:
            speeds[other.label] = compared
    if not speeds:
        return ""
    label, compared = max(speeds.items(), key=lambda item: item[1].mean_speed or 0.0)
    points = f"{compared.mean:+.2f} points{_speed_words(compared)}"
    return f"Faster and within {NEAR:g} point{_on_average(len(choice.rows))}: {label} ({points})."


def recommendation_words(rows: Sequence[Row], labels: Mapping[Variant, str]) -> list[str]:
    """Say what to take, what it gains over LoRA, full FT and a probe, and what speaks against it.

    Args:
        rows: The rows of all groups.
        labels: Display names.

    Returns:
        Sentences; none where nothing that tunes at most 10 % was compared with anything.
    """
    found = standings(rows, labels)
    choice = recommended(found)
    if choice is None:
        return []
    compared = {method: difference(choice.rows, reference_rows(found, method, choice)) for method in REFERENCES}
    against = {method_label(method): value for method, value in compared.items() if value is not None}
    objections = list(_objections(choice, found, against))
    return [
        f"{_choice_words(choice)} {_best_words(choice)}",
        *(_reference_words(name, value) for name, value in against.items()),
        f"What speaks against it: {'; '.join(objections) or 'nothing in these results'}.",
        *filter(None, [_faster_words(choice, found)]),
    ]


def outcome(results: Sequence[Result], rows: Sequence[Row], labels: Mapping[Variant, str]) -> tuple[str, ...]:
    """Put the outcome into words.

    Args:
        results: Runs, whatever became of them.
        rows: What the finished ones come to.
        labels: Display names.

    Returns:
        Points of a list, each a sentence or a few.
    """
    groups = by_group(rows)
    if len(groups) > _MOST_GROUPS_IN_WORDS:
        first = [_wins_words(rows, labels)]
    else:
        names = setting_names(groups)
        first = [_group_words(names[group], members, labels) for group, members in groups.items()]
    counted = " ".join(filter(None, [status_words(results), _seed_words(rows), common_words(groups)]))
    words = [counted, *recommendation_words(rows, labels), *first, _correlation_words(finished_runs(results))]
    return tuple(filter(None, words))
