"""Which classes do not collapse, and which are close to each other, beside what becomes of their test images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from nc_finetune.report._tables.analysis import summed_confusion, taken_for
from nc_finetune.report._tables.comparison import best_rows
from nc_finetune.report._tables.groups import setting_names
from nc_finetune.report._tables.summary import Row, by_group
from nc_finetune.report._tables.tables import NOTHING, Entry, Table, number, significant
from nc_finetune.results.result import Result

_MOST = 3


def spread_table(rows: Sequence[Row]) -> Table:
    """Tabulate the classes that collapse least under the best method of each group, and how they are recognised.

    Returns:
        The table; empty where no run has measured it.
    """
    lines = []
    for setting, best in _best(rows):
        matrix, names = summed_confusion(best.runs), best.runs[0].class_names
        for name, spread in _largest(_mean_spreads([run.class_spread for run in best.runs])):
            row, label = [], names.index(name) if name in names else -1
            if matrix and label >= 0:
                row = matrix[label]
            recall = 100 * row[label] / sum(row) if sum(row) else None
            other = Entry(taken_for(row, label, names) if row else NOTHING)
            lines.append((*_place(setting, best, name), _value(spread), number(recall, "{:.1f}"), other))
    return Table(("on", "best method", "class", "spread", "recall %", "most often taken for"), tuple(lines))


def close_table(rows: Sequence[Row]) -> Table:
    """Tabulate the pairs of classes that are closest under the best method of each group, and how they are confused.

    Returns:
        The table; empty where no run has measured it.
    """
    lines = []
    for setting, best in _best(rows):
        for name, cdnv in _largest(_mean_cdnvs([run.closest_pairs for run in best.runs])):
            place = _place(setting, best, name.replace("|", " | "))
            lines.append((*place, _value(cdnv), number(_confused(best.runs, name), "{:.1f}")))
    return Table(("on", "best method", "classes", "CDNV", "confused %"), tuple(lines))


def _best(rows: Sequence[Row]) -> Iterator[tuple[str, Row]]:
    settings = setting_names(by_group(rows))
    for group, members in by_group(rows).items():
        yield from ((settings[group], best) for best in best_rows(members)[:1])


def _place(setting: str, row: Row, name: str) -> tuple[Entry, ...]:
    return Entry(setting), Entry(row.label), Entry(name)


def _value(value: float) -> Entry:
    return Entry(significant(value), value=value)


def _mean_spreads(runs: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Return the mean of each class over the runs that know it; classes that none of them knows are left out."""
    known = [
        {name: value for name, value in values.items() if value is not None and not math.isnan(value)}
        for values in runs
    ]
    return {
        name: statistics.fmean(values[name] for values in known if name in values)
        for name in dict.fromkeys(name for values in known for name in values)
    }


def _mean_cdnvs(runs: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Return the mean of each pair; a run that lists others alone counts as 0.

    Records once had null for infinite ones: a pair of which nothing is known has never been listed.
    """
    known = [
        {name: math.inf if value is None else value for name, value in values.items()} for values in runs if values
    ]
    return {
        name: statistics.fmean(values.get(name, 0.0) for values in known)
        for name in dict.fromkeys(name for values in known for name in values)
    }


def _largest(means: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(means.items(), key=lambda one: -one[1])[:_MOST]


def _confused(runs: Sequence[Result], pair: str) -> float | None:
    """Return the share of the test images of two classes that were taken for the other of them, in per cent."""
    matrix, names = summed_confusion(runs), runs[0].class_names
    labels = [
        (first, second)
        for first, name in enumerate(names)
        for second, other in enumerate(names)
        if f"{name}|{other}" == pair
    ]
    if not matrix or not labels:
        return None
    first, second = labels[0]
    images = sum(matrix[first]) + sum(matrix[second])
    return 100 * (matrix[first][second] + matrix[second][first]) / images if images else None
