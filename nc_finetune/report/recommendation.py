"""What a report recommends, in words: what it gains over the rest, what speaks against it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from nc_finetune.report._tables.comparison import Difference, difference, gap
from nc_finetune.report._tables.groups import Group, group_order, grouped, setting_names
from nc_finetune.report._tables.labels import count, listed
from nc_finetune.report._tables.standings import (
    LIGHT,
    NEAR,
    REFERENCES,
    Recommendation,
    Standing,
    alternatives,
    light,
    recommended,
    reference_rows,
    standings,
)
from nc_finetune.report._tables.summary import Row
from nc_finetune.report._tables.variants import method_label

_FASTER = 1.1  # times: less is noise


def _on_average(settings: int) -> str:
    return " on average" if settings > 1 else ""


def _choice_words(recommendation: Recommendation) -> str:
    choice = recommendation.within
    number = len(choice.rows)
    where, mean = (f" over {number} settings", " on average") if number > 1 else ("", "")
    measure = next(iter(choice.rows)).measure
    return (
        f"Recommended: {choice.label}, with {choice.tuned_percent:.2f} % of the parameters tuned: the closest to the "
        f"best{where} of all that tune at most {LIGHT:g} %, or train nothing, and lost no run"
        f" ({measure} {choice.accuracy:.2f} %{mean}).{_left_out_words(recommendation.left_out)}"
    )


def _left_out_words(labels: Sequence[str]) -> str:
    return (
        f" Not considered, as not run with all the seeds and settings that it is chosen by: {listed(labels)}."
        * bool(labels)
    )


def _best_words(choice: Standing) -> str:
    """Say how far the recommendation is from the best of all."""
    number, behind = len(choice.behind), choice.behind
    if not any(behind.values()):
        return "No mean is higher" + (" in any setting that it was run in." if number > 1 else ".")
    mean, (group, largest) = statistics.fmean(behind.values()), max(behind.items(), key=lambda item: item[1])
    if number == 1:
        return f"It is {largest:.2f} points below the best of all."
    where = setting_names(behind)[group]
    return (
        f"It is {mean:.2f} points below the best of each setting on average, at most {largest:.2f} ({where}); "
        f"within {NEAR:g} point in {choice.near} of {number}."
    )


def _verdict_words(against: Mapping[str, Difference]) -> str:
    """Read the table of paired differences: what is clear, what is not, and what can't be told."""
    by_verdict = grouped(against.items(), lambda item: "none" if item[1].no_interval else item[1].verdict)
    heads = {"ahead": "clearly ahead of", "behind": "clearly behind", "not clear": "not clear against"}
    parts = [
        f"{head} {len(by_verdict[verdict])} ({listed([label for label, _ in by_verdict[verdict]])})"
        for verdict, head in heads.items()
        if verdict in by_verdict
    ]
    for reason, members in grouped(by_verdict.get("none", []), lambda item: item[1].no_interval).items():
        parts.append(f"nothing is clear against {len(members)} ({listed([name for name, _ in members])}): {reason}")
    unpaired = sum(found.unpaired for found in against.values())
    left_out = f" Runs without a counterpart are left out ({unpaired} over all comparisons)." if unpaired else ""
    over_sets = [found.over_sets for found in against.values() if found.over_sets is not None]
    clear = sum(low > 0 or high < 0 for low, high in over_sets)
    random = f" Over data sets that are random, too, {clear} of {len(over_sets)} are clear." if over_sets else ""
    return f"Seed by seed against {count(len(against), 'alternative')}: {'; '.join(parts)}.{random}{left_out}"


def _objections(choice: Standing, found: Sequence[Standing], against: Mapping[str, Difference]) -> Iterator[str]:
    """Say what the numbers hold against the recommendation."""
    measured = {group for standing in found for group in standing.rows}
    if elsewhere := [group for group in measured if group not in choice.rows]:
        names = setting_names(sorted(measured, key=group_order))
        places = listed([names[group] for group in names if group in elsewhere])
        yield f"it has no result in {len(elsewhere)} of {count(len(measured), 'setting')} ({places})"
    far = {group: points for group, points in choice.behind.items() if points > NEAR}
    if far and len(choice.behind) > 1:
        group, points = max(far.items(), key=lambda item: item[1])
        yield (
            f"it is more than {NEAR:g} point below the best in {len(far)} of {len(choice.behind)} settings, most on "
            f"{setting_names(choice.rows)[group]} ({points:.2f})"
        )
    ahead = [f"{label} {-other.mean:.2f}{_sure(other)}" for label, other in against.items() if other.mean < 0]
    if ahead:
        yield f"{len(ahead)} better than it{_on_average(len(choice.rows))}, in points ({listed(ahead)})"
    unsure = [label for label, other in against.items() if other.mean >= 0 and other.verdict == "not clear"]
    if unsure:
        yield f"its lead over {len(unsure)} ({listed(unsure)}) is not clear"
    yield from _against_references(choice, found)
    yield from _lighter(choice, found, against)


def _sure(found: Difference) -> str:
    return " (clear)" if found.verdict == "behind" else " (not clear)"


def _against_references(choice: Standing, found: Sequence[Standing]) -> Iterator[str]:
    """Say where LoRA, full FT or a probe is ahead, or faster, or has less NC1 and is still behind."""
    for method in REFERENCES:
        rows, name = reference_rows(found, method, choice), method_label(method)
        compared = difference(choice.rows, rows)
        if compared is None:
            continue
        lost = {group: points for group, points in compared.points.items() if points < 0}
        if lost and len(compared.points) > 1:
            group, points = min(lost.items(), key=lambda item: item[1])
            yield f"it is below {name} in {count(len(lost), 'setting')}, most on {_name(group, choice)} ({points:+.2f})"
        if (compared.mean_speed or math.inf) < 1 and method != "linear_probe":
            yield f"its epochs are slower than those of {name}"
        if method == "full_ft":
            yield from _collapse_doubt(choice, rows)


def _name(group: Group, choice: Standing) -> str:
    return setting_names(choice.rows)[group]


def _collapse_doubt(choice: Standing, full: Mapping[Group, Row]) -> Iterator[str]:
    """Say where what collapses more is no more accurate: NC1 does not explain it then."""
    pairs = [(row.nc1, full[group].nc1, gap(row, full[group])) for group, row in choice.rows.items() if group in full]
    known = [(ours > theirs, points) for ours, theirs, points in pairs if ours is not None and theirs is not None]
    if number := sum(higher and points > 0 for higher, points in known):
        places = f" in {number} of {len(known)} settings" if len(known) > 1 else ""
        yield f"it is ahead of full FT with a higher mean NC1{places}"


def _lighter(choice: Standing, found: Sequence[Standing], against: Mapping[str, Difference]) -> Iterator[str]:
    """Name what is nearly as accurate at a lower price."""
    lighter = [other for other in _near(choice, found, against) if other.tuned_percent < 0.5 * choice.tuned_percent]
    if lighter:
        least = min(lighter, key=lambda other: other.tuned_percent)
        within = f"within {NEAR:g} point of it{_on_average(len(choice.rows))}"
        yield f"{least.label} tunes {least.tuned_percent:.2f} % and is {within}"


def _near(choice: Standing, found: Sequence[Standing], against: Mapping[str, Difference]) -> list[Standing]:
    """Find what lost no run, and is within a point of the recommendation in the same settings."""
    return [
        other
        for other in found
        if other.rows.keys() == choice.rows.keys()
        and not other.lost
        and other.label in against
        and against[other.label].mean <= NEAR
    ]


def _faster_words(choice: Standing, found: Sequence[Standing], against: Mapping[str, Difference]) -> str:
    """Name what is within a point of the recommendation on average and has the fastest epochs."""
    speeds = {other.label: 1 / (against[other.label].mean_speed or math.inf) for other in _near(choice, found, against)}
    if not speeds or max(speeds.values()) <= _FASTER:
        return ""
    label, speed = max(speeds.items(), key=lambda item: item[1])
    points = f"{-against[label].mean:+.2f} points, epochs {speed:.1f} times as fast"
    return f"Faster and within {NEAR:g} point{_on_average(len(choice.rows))}: {label} ({points})."


def recommendation_words(rows: Sequence[Row]) -> list[str]:
    """Say what to take, what of its lead over the alternatives is clear, and what speaks against it.

    The words are read off the numbers of :func:`~nc_finetune.report._tables.standings.comparison_table`.

    Returns:
        Sentences; none where nothing that tunes at most 10 % was compared with anything.
    """
    found = standings(rows)
    recommendation = recommended(found)
    if recommendation is None:
        why = _why_nothing(light(found))
        return [f"Nothing is recommended: {why}."] if why else []
    choice = recommendation.standing
    against = alternatives(choice, found)
    objections = list(_objections(choice, found, against))
    untold = "it shares no setting and seed with any other, so that nothing can be told"
    return [
        f"{_choice_words(recommendation)} {_best_words(choice)}",
        *([_verdict_words(against)] if against else []),
        f"What speaks against it: {'; '.join(objections) or ('nothing in these results' if against else untold)}.",
        *filter(None, [_faster_words(choice, found, against)]),
    ]


def _why_nothing(candidates: Sequence[Standing]) -> str:
    """Say why none of what tunes little is recommended; empty where nothing does."""
    those = f"that tune at most {LIGHT:g} % of the parameters, or train nothing,"
    lost = {standing.label: ", ".join(dict.fromkeys(standing.lost.values())) for standing in candidates}
    if all(lost.values()):
        named = listed([f"{label}: {words}" for label, words in lost.items()])
        return f"all {those} lost runs ({named})" if lost else ""
    return f"no two {those} and lost no run, share a setting and a seed"
