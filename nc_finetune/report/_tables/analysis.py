"""What follows from the runs of a benchmark: rank correlation, Pareto fronts, worst classes, who won."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nc_finetune.report._tables.comparison import CONFIDENCE, best_rows
from nc_finetune.report._tables.groups import finite, group_of, setting_names
from nc_finetune.report._tables.score import ACCURACY
from nc_finetune.report._tables.summary import Row, by_group
from nc_finetune.report._tables.tables import NOTHING, Entry, Table, accuracy_text, cost_text, costs_of, measure_column
from nc_finetune.results.result import Result

_FEWEST_RUNS = 5
_FEWEST_FOR_INTERVAL = 10
_WORST = 3


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation with its interval.

    Attributes:
        value: In ``[-1, 1]``; ``None`` where :attr:`no_interval` says why there is none.
        low: Lower end of the 95 % interval; ``None`` where there is none.
        high: Upper end.
        number: How many pairs there were.
        no_interval: Why there is no interval; empty where there is one.
    """

    value: float | None
    low: float | None
    high: float | None
    number: int
    no_interval: str = ""


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> RankCorrelation:
    """Compute Spearman's rank correlation and its 95 % interval.

    The interval is Fisher's ``tanh(atanh r -+ 1.96 s)`` with the variance ``s^2 = (1 + r^2/2) / (n - 3)`` for ranks.
    It rests on a normal approximation, hence on at least ten pairs, and would have no width at a perfect order.

    Args:
        first: n values.
        second: n values.

    Returns:
        The correlation, without an interval for fewer than ten pairs or a perfect order; without a value, too, for
        fewer than five, or if all values on one side are the same. Pairs with a value that is not finite don't count.

    Source:
        Bonett & Wright 2000, Sample size requirements for estimating Pearson, Kendall and Spearman correlations,
        10.1007/BF02294183.

    Example:
        >>> found = rank_correlation(range(12), [2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11])
        >>> round(found.value, 3), round(found.low, 2), round(found.high, 2)
        (0.958, 0.81, 0.99)
        >>> rank_correlation(range(5), range(5)).no_interval
        '5 runs are too few for an interval, at least 10 are needed'
    """
    pairs = [pair for pair in zip(first, second, strict=True) if len(finite(pair)) == 2]
    number = len(pairs)
    if number < _FEWEST_RUNS:
        runs = "run is" if number == 1 else "runs are"
        return RankCorrelation(None, None, None, number, f"{number} {runs} too few, at least {_FEWEST_RUNS} are needed")
    if any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return RankCorrelation(None, None, None, number, "all runs have the same value of one of them")
    from scipy import stats  # an extra

    value = float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
    if number < _FEWEST_FOR_INTERVAL:
        few = f"{number} runs are too few for an interval, at least {_FEWEST_FOR_INTERVAL} are needed"
        return RankCorrelation(value, None, None, number, few)
    if abs(value) > 1 - 1e-9:
        return RankCorrelation(value, None, None, number, "no interval, the order is perfect")
    half = stats.norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt((1 + value**2 / 2) / (number - 3))
    low, high = (math.tanh(math.atanh(value) + side * half) for side in (-1, 1))
    return RankCorrelation(value, low, high, number)


def correlation_text(found: RankCorrelation) -> tuple[str, str]:
    """Write a rank correlation and its interval, or why there is none."""
    interval = found.no_interval if found.low is None else f"{found.low:.2f} to {found.high:.2f}"
    return NOTHING if found.value is None else f"{found.value:.2f}", interval


def nc1_correlation(runs: Iterable[Result]) -> RankCorrelation:
    """Correlate accuracy with NC1 over runs that have both."""
    pairs = [pair for run in runs if len(pair := finite([run.nc1, run.score])) == 2]
    return rank_correlation([nc1 for nc1, _ in pairs], [accuracy for _, accuracy in pairs])


def correlation_table(runs: Sequence[Result]) -> Table:
    """Correlate accuracy with NC1: over all runs, over each data set, over each backbone, and in each group.

    Returns:
        The table; a scope that is the same as one above it is left out, as is one without a correlation.
    """
    scopes: dict[str, list[Result]] = {"all runs": list(runs)}
    names = setting_names(map(group_of, runs))
    for run in runs:
        group = group_of(run)
        for name in dict.fromkeys((group.dataset, group.network, names[group])):
            scopes.setdefault(name, []).append(run)
    lines, seen = [], set()
    for name, members in scopes.items():
        key = frozenset(run.run_id for run in members)
        found = nc1_correlation(members)
        if found.value is not None and key not in seen:
            seen.add(key)
            value, interval = correlation_text(found)
            lines.append((name, str(found.number), value, interval))
    measure = runs[0].measure if runs else ACCURACY
    return Table.of_texts(("over", "runs", f"Spearman, {measure} and NC1", "95 % interval"), lines)


def pareto_front(rows: Sequence[Row], cost: str) -> list[Row]:
    """Find the rows that nobody beats: none has a higher mean accuracy at no higher cost, or the same at a lower cost.

    Args:
        rows: The rows of one group.
        cost: Attribute of a row that holds the cost.

    Returns:
        The front, from the cheapest on; rows without cost or accuracy are left out.
    """
    known = [row for row in rows if finite([row.accuracy]) and finite([getattr(row, cost)])]
    front: list[Row] = []
    for row in sorted(known, key=lambda row: (getattr(row, cost), -(row.accuracy or 0))):
        if not front or (row.accuracy or 0) > (front[-1].accuracy or 0):
            front.append(row)
    return front


def pareto_table(rows: Sequence[Row]) -> Table:
    """Tabulate the costs of what is on a Pareto front; a cost is marked where the row is on the front of that cost."""
    lines, known = [], costs_of(rows)
    names = setting_names(by_group(rows))
    for group, members in by_group(rows).items():
        fronts = {column: pareto_front(members, attribute) for column, attribute in known.items()}
        for row in members:
            marks = [row in fronts[column] for column in known]
            if any(marks):
                costs = [cost_text(column, getattr(row, attribute)) for column, attribute in known.items()]
                values = [getattr(row, attribute) for attribute in known.values()]
                cells = [Entry(text, mark, value) for text, mark, value in zip(costs, marks, values, strict=True)]
                accuracy = Entry(accuracy_text(row), value=row.accuracy)
                lines.append((Entry(names[group]), Entry(row.label), accuracy, *cells))
    return Table(("on", "method", measure_column(rows), *known), tuple(lines))


def summed_confusion(runs: Sequence[Result]) -> list[list[int]]:
    """Add up the confusion matrices of runs, e.g. of all seeds."""
    matrices = [run.confusion_matrix() for run in runs if run.confusion]
    same = [matrix for matrix in matrices if len(matrix) == len(matrices[0])]
    return [[sum(counts) for counts in zip(*rows, strict=True)] for rows in zip(*same, strict=True)]


def worst_classes(runs: Sequence[Result]) -> list[tuple[str, float, str]]:
    """Find the classes that are recognised least.

    Returns:
        Name, recall in per cent, and what it is most often taken for, of the three worst.
    """
    matrix = summed_confusion(runs)
    if not matrix:
        return []
    names = runs[0].class_names or [str(label) for label in range(len(matrix))]
    recalls = [(100 * row[label] / sum(row), label) for label, row in enumerate(matrix) if sum(row)]
    return [
        (names[label], recall, taken_for(matrix[label], label, names)) for recall, label in sorted(recalls)[:_WORST]
    ]


def taken_for(row: Sequence[int], label: int, names: Sequence[str]) -> str:
    """Name what a class is most often taken for, from its row of the confusion matrix; a dash for nothing."""
    others = [(count, other) for other, count in enumerate(row) if other != label and count]
    return names[max(others)[1]] if others else NOTHING


def worst_table(rows: Sequence[Row]) -> Table:
    """Tabulate the worst classes of the best method of each group.

    Returns:
        The table; empty where no confusion was recorded.
    """
    lines = []
    settings = setting_names(by_group(rows))
    for group, members in by_group(rows).items():
        for best in best_rows(members)[:1]:
            for name, recall, other in worst_classes(best.runs):
                lines.append((settings[group], best.label, name, f"{recall:.1f}", other))
    return Table.of_texts(("on", "best method", "class", "recall %", "most often taken for"), lines)


def wins(rows: Sequence[Row]) -> collections.Counter[str]:
    """Count the groups in which a method has the highest mean accuracy."""
    return collections.Counter(best.label for members in by_group(rows).values() for best in best_rows(members))
