"""The outcome of a benchmark in words: what was run and lost, what lies at an edge, who came first."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Sequence

from nc_finetune.report._tables.analysis import correlation_text, nc1_correlation, wins
from nc_finetune.report._tables.comparison import Difference, best_rows, difference
from nc_finetune.report._tables.groups import common_words, group_of, setting_names
from nc_finetune.report._tables.labels import count, listed, plain_words
from nc_finetune.report._tables.summary import Row, by_group, finished_runs
from nc_finetune.report._tables.tables import accuracy_text
from nc_finetune.report.recommendation import recommendation_words
from nc_finetune.results.result import Result

_MOST_GROUPS_IN_WORDS = 3
_EDGES = {"l2": "penalty", "neighbors": "neighbours"}
_STATUS_WORDS = {"ok": "finished", "diverged": "diverged", "failed": "failed"}


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
    return f"Without a result: {listed([*of_settings, *lost])}." if nothing or lost else ""


def _fates(rows: Sequence[Row]) -> str:
    counts = sum((collections.Counter(row.lost) for row in rows), collections.Counter())
    return ", ".join(f"{number} {fate}" for fate, number in counts.items())


def missing_words(rows: Sequence[Row]) -> str:
    """Say whose means are over fewer seeds than others of their setting, since they were not run with the rest.

    Returns:
        One sentence; empty where all rows of a setting have the same seeds.
    """
    found = [f"{name} ({row.missing_words})" for row, name in _placed(rows) if row.missing]
    return f"Not run with all seeds of their setting: {listed(found)}." if found else ""


def edge_words(rows: Sequence[Row]) -> str:
    """Say which rows hold values that were not bracketed: the best of those that were tried, and at their edge.

    Returns:
        A sentence or two; empty where a lower and a higher value did no better everywhere.
    """
    found = [f"{name} ({_edge_counts(row)})" for row, name in _placed(rows) if row.at_edge]
    if not found:
        return ""
    words = f"At the edge of what was tried, so that better may lie beyond: {listed(found)}."
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
    return f"Not as good before the last epoch, so that more may be better: {listed(found)}." if found else ""


def _placed(rows: Sequence[Row]) -> Iterator[tuple[Row, str]]:
    """Name each row, with its setting where there are several."""
    names = setting_names(by_group(rows))
    yield from ((row, f"{row.label} on {names[row.group]}" if len(names) > 1 else row.label) for row in rows)


def _extends(run: Result) -> bool:
    return bool(run.config.get("choice", {}).get("extend_rates"))


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
