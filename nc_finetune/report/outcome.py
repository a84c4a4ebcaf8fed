"""The outcome of a benchmark in words: what is recommended, what it gains over the rest, what speaks against it."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from nc_finetune.report._tables.analysis import correlation_text, nc1_correlation, wins
from nc_finetune.report._tables.comparison import Difference, best_rows, difference, gap
from nc_finetune.report._tables.groups import Group, common_words, group_of, group_order, grouped, setting_names
from nc_finetune.report._tables.labels import plain_words
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
from nc_finetune.report._tables.summary import Row, by_group, finished_runs
from nc_finetune.report._tables.tables import accuracy_text
from nc_finetune.report._tables.variants import method_label
from nc_finetune.results.result import Result

_MOST_GROUPS_IN_WORDS = 3
_MOST_NAMES = 4
_FASTER = 1.1  # times: less is noise
_EDGES = {"l2": "penalty", "neighbors": "neighbours"}
_STATUS_WORDS = {"ok": "finished", "diverged": "diverged", "failed": "failed"}


def count(number: int, noun: str) -> str:
    """Write a number of things.

    Example:
        >>> count(1, "run"), count(2, "run")
        ('1 run', '2 runs')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def status_words(results: Sequence[Result]) -> str:
    """Count the runs by what became of them."""
    counts = collections.Counter(str(run.status) for run in results)
    words = [f"{counts[status]} {word}" for status, word in _STATUS_WORDS.items() if counts[status]]
    return f"{count(len(results), 'run')}: {', '.join(words)}."


def lost_words(rows: Sequence[Row]) -> str:
    """Say whose means are over fewer runs than were begun, and what became of the others.

    Returns:
        One sentence; empty where every run came to a result.
    """
    names, by_setting = setting_names(by_group(rows)), by_group(rows)
    nothing = [group for group, members in by_setting.items() if not any(row.seeds for row in members)]
    of_settings = [f"nothing finished on {names[group]} ({_fates(by_setting[group])})" for group in nothing]
    lost = [f"{name}: {row.lost_words}" for row, name in _placed(rows) if row.lost and row.group not in nothing]
    return f"Without a result: {_listed([*of_settings, *lost])}." if nothing or lost else ""


def _fates(rows: Sequence[Row]) -> str:
    counts = sum((collections.Counter(row.lost) for row in rows), collections.Counter())
    return ", ".join(f"{number} {fate}" for fate, number in counts.items())


def missing_words(rows: Sequence[Row]) -> str:
    """Say whose means are over fewer seeds than others of their setting, since they were not run with the rest.

    Returns:
        One sentence; empty where all rows of a setting have the same seeds.
    """
    found = [f"{name} ({row.missing_words})" for row, name in _placed(rows) if row.missing]
    return f"Not run with all seeds of their setting: {_listed(found)}." if found else ""


def edge_words(rows: Sequence[Row]) -> str:
    """Say which rows hold values that were not bracketed: the best of those that were tried, and at their edge.

    Returns:
        A sentence or two; empty where a lower and a higher value did no better everywhere.
    """
    found = [f"{name} ({_edge_counts(row)})" for row, name in _placed(rows) if row.at_edge]
    if not found:
        return ""
    words = f"At the edge of what was tried, so that better may lie beyond: {_listed(found)}."
    fixed = any("learning rate" in run.edges and not _extends(run) for row in rows for run in row.runs)
    advice = " A grid with extend_rates: true goes on with learning rates until they are inside." if fixed else ""
    return words + advice


def _edge_counts(row: Row) -> str:
    return ", ".join(
        f"{_EDGES.get(what, plain_words(what))} {number} of {row.seeds}" for what, number in row.at_edge.items()
    )


def epoch_words(rows: Sequence[Row]) -> str:
    """Say which rows were trained for all epochs that there were, as folds saw none as good before.

    Returns:
        One sentence; empty where all were stopped before, or nobody chose.
    """
    found = [f"{name} ({row.all_epochs} of {row.seeds})" for row, name in _placed(rows) if row.all_epochs]
    return f"Not as good before the last epoch, so that more may be better: {_listed(found)}." if found else ""


def _placed(rows: Sequence[Row]) -> Iterator[tuple[Row, str]]:
    """Name each row, with its setting where there are several."""
    names = setting_names(by_group(rows))
    yield from ((row, f"{row.label} on {names[row.group]}" if len(names) > 1 else row.label) for row in rows)


def _extends(run: Result) -> bool:
    return bool(run.config.get("choice", {}).get("extend_rates"))


def _listed(names: Sequence[str]) -> str:
    """Name a few, and count the rest; names have commas of their own."""
    rest = len(names) - _MOST_NAMES
    return "; ".join([*names[:_MOST_NAMES], *([f"{rest} more"] if rest > 0 else [])])


def _seed_words(rows: Sequence[Row]) -> str:
    """Say how many seeds the means are over."""
    numbers = [len(row.accuracies) for row in rows if row.accuracies]
    if not numbers:
        return ""
    fewest, most = min(numbers), max(numbers)
    if most == 1:
        return "Every value is of a single seed."
    return f"Every mean is over {most if fewest == most else f'{fewest} to {most}'} seeds."


def _share_words(row: Row) -> str:
    share = "" if row.tuned_percent is None else f", {row.tuned_percent:.2f} % of the parameters tuned"
    lost = f"; {row.lost_words}" if row.lost else ""
    return f"{accuracy_text(row)} %{share}{lost}"


def _group_words(name: str, rows: Sequence[Row]) -> str:
    """Say who came first in a group, who second, and whether they can be told apart."""
    group, best = rows[0].group, best_rows(rows)
    if not best:
        return f"On {name}, no run has a test result."
    named = " and ".join(f"{row.label} ({_share_words(row)})" for row in best)
    if len(rows) == 1:
        return f"On {name}, there is only {named}."
    second = best_rows([row for row in rows if row not in best])
    if not second:
        return f"On {name}, the highest mean {group.measure} is that of {named}."
    pairs = math.comb(sum(row.accuracy is not None for row in rows), 2)
    against = difference({group: best[0]}, {group: second[0]}, pairs)
    lead = "no seed that both have" if against is None else _difference_words(against)
    behind = f"followed by {second[0].label} ({_share_words(second[0])}): {lead}"
    return f"On {name}, the highest mean {group.measure} is that of {named}, {behind}."


def _difference_words(found: Difference) -> str:
    """Write a difference with what it rests on."""
    reason = found.no_interval or f"95 % interval {found.low:+.2f} to {found.high:+.2f}"
    verdict = "not clear" if found.verdict == "not clear" else f"clearly {found.verdict}"
    return f"{found.mean:+.2f} points over {count(len(found.values), 'pair')}, {verdict} ({reason})"


def _wins_words(rows: Sequence[Row]) -> str:
    """Say how often each method came first, where naming every group would be too long."""
    counts = wins(rows)
    named = "; ".join(f"{label} in {number}" for label, number in counts.most_common())
    return (
        f"Of {len(by_group(rows))} settings (data set, backbone, training size), the highest mean is that of {named}."
    )


def _correlation_words(finished: Sequence[Result]) -> str:
    """Say how accuracy goes with NC1, as far as its interval does."""
    found = nc1_correlation(finished)
    if not found.number:
        return ""
    measure = finished[0].measure
    of_all = f"{found.number} of {len(finished)} runs" if found.number < len(finished) else count(found.number, "run")
    settings = len(set(map(group_of, finished)))
    across = " (across settings, whose NC1 differ for other reasons, too)" if settings > 1 else ""
    verdict = f"{measure} and NC1 show no clear relation"
    if found.low is not None and found.high is not None and found.low * found.high > 0:
        verdict = f"{measure} {'falls' if found.low < 0 else 'rises'} as NC1 grows"
    value, interval = correlation_text(found)
    numbers = "no correlation" if found.value is None else f"Spearman {value}"
    reason = found.no_interval or f"95 % interval {interval}"
    return f"Over {of_all}{across}, {verdict}: {numbers}, {reason}."


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
        f" Not considered, as not run with all the seeds and settings that it is chosen by: {_listed(labels)}."
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
        f"{head} {len(by_verdict[verdict])} ({_listed([label for label, _ in by_verdict[verdict]])})"
        for verdict, head in heads.items()
        if verdict in by_verdict
    ]
    for reason, members in grouped(by_verdict.get("none", []), lambda item: item[1].no_interval).items():
        parts.append(f"nothing is clear against {len(members)} ({_listed([name for name, _ in members])}): {reason}")
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
        places = _listed([names[group] for group in names if group in elsewhere])
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
        yield f"{len(ahead)} better than it{_on_average(len(choice.rows))}, in points ({_listed(ahead)})"
    unsure = [label for label, other in against.items() if other.mean >= 0 and other.verdict == "not clear"]
    if unsure:
        yield f"its lead over {len(unsure)} ({_listed(unsure)}) is not clear"
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
        named = _listed([f"{label}: {words}" for label, words in lost.items()])
        return f"all {those} lost runs ({named})" if lost else ""
    return f"no two {those} and lost no run, share a setting and a seed"


def outcome(results: Sequence[Result], rows: Sequence[Row]) -> tuple[str, ...]:
    """Put the outcome into words.

    Args:
        results: Runs, whatever became of them.
        rows: What the finished ones come to.

    Returns:
        Points of a list, each a sentence or a few.
    """
    groups = by_group(rows)
    if len(groups) > _MOST_GROUPS_IN_WORDS:
        first = [_wins_words(rows)]
    else:
        names = setting_names(groups)
        first = [_group_words(names[group], members) for group, members in groups.items()]
    about = (
        status_words(results),
        lost_words(rows),
        _seed_words(rows),
        missing_words(rows),
        common_words(groups),
    )
    counted = " ".join(filter(None, about))
    warnings = (edge_words(rows), epoch_words(rows))
    words = [counted, *warnings, *recommendation_words(rows), *first, _correlation_words(finished_runs(results))]
    return tuple(filter(None, words))
