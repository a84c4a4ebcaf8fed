"""The tables that every report shows: for the terminal, markdown and HTML alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nc_finetune.report._tables.comparison import best_rows
from nc_finetune.report._tables.groups import setting_names
from nc_finetune.report._tables.score import ACCURACY
from nc_finetune.report._tables.summary import Row, by_group, row_labels

NOTHING = "\N{EN DASH}"
AT_EDGE = " \N{DOUBLE DAGGER}"  # behind the learning rate of a row with values that were not bracketed
_INFINITE = "\N{INFINITY}"
CALIBRATION = ("calibration error %", "tempered %")
_PARTIAL = " \N{DAGGER}"  # behind a mean from which runs are missing


@dataclass(frozen=True)
class Entry:
    """One entry of a table, as plain text; whoever shows it escapes it.

    Attributes:
        text: What it says.
        best: Whether it holds the highest mean accuracy of its group, over the seeds that two rows share.
        value: The number in it, to sort by.
    """

    text: str
    best: bool = False
    value: float | None = None


def number(value: float | None, text: str = "{:.2f}") -> Entry:
    """Write a number, by which its column is sorted; a dash where there is none."""
    return Entry(NOTHING if value is None else text.format(value), value=value)


@dataclass(frozen=True)
class Table:
    """A table, the same for the terminal, markdown and HTML.

    Attributes:
        columns: The heading of each column.
        rows: The cells; the first one of a row names it.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Entry, ...], ...] = ()

    @classmethod
    def of_texts(cls, columns: tuple[str, ...], lines: Iterable[Iterable[str]]) -> Table:
        """Make a table without numbers to sort by."""
        return cls(columns, tuple(tuple(map(Entry, line)) for line in lines))

    def without_empty(self, *names: str) -> Table:
        """Leave out those of some columns in which nothing is said."""
        empty = {
            place
            for place, name in enumerate(self.columns)
            if name in names and all(row[place].text == NOTHING for row in self.rows)
        }
        kept = [place for place in range(len(self.columns)) if place not in empty]
        return Table(
            tuple(self.columns[place] for place in kept), tuple(tuple(row[p] for p in kept) for row in self.rows)
        )


def significant(value: float | None, digits: int = 3) -> str:
    """Write a number with a fixed count of significant digits, and an exponent only where it is very long without.

    Args:
        value: The number, finite or infinite, or ``None``.
        digits: How many digits count; three tell runs apart without pretending to more.

    Returns:
        The text; a dash for ``None``.

    Example:
        >>> [significant(value) for value in (0.22345, 18.361, 1234.5, 7e-7, 0.0, math.inf, None)]
        ['0.223', '18.4', '1234', '7.00e-07', '0', '∞', '–']
    """
    if value is None or value == 0:
        return NOTHING if value is None else "0"
    if math.isinf(value):
        return _INFINITE if value > 0 else f"-{_INFINITE}"
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent < 5:
        return f"{value:.{max(digits - 1 - exponent, 0)}f}"
    return f"{value:.{digits - 1}e}"


def accuracy_text(row: Row) -> str:
    """Write the accuracy of a row.

    Returns:
        Mean in per cent, with the standard deviation where there is one; marked where runs without a result, or seeds
        that others of its setting have, are not in it.
    """
    if row.accuracy is None:
        return NOTHING
    spread = "" if row.accuracy_sd is None else f" ± {row.accuracy_sd:.2f}"
    return f"{row.accuracy:.2f}{spread}{_PARTIAL if row.lost or row.missing else ''}"


def measure_text(mean: float | None, sd: float | None) -> str:
    """Write a collapse measure of a row.

    Returns:
        Both in words; a dash where nothing was measured.

    Example:
        >>> measure_text(0.22345, 0.0123)
        '0.223 ± 0.012'
    """
    return significant(mean) + ("" if sd is None else f" ± {significant(sd, 2)}")


def memory_text(size: float | None) -> str:
    """Write a number of bytes.

    Returns:
        In KiB, MiB or GiB; a dash for ``None``.

    Example:
        >>> memory_text(49_480), memory_text(13_000_000)
        ('48 KiB', '12 MiB')
    """
    if size is None:
        return NOTHING
    if size < 2**20:
        return f"{size / 2**10:.0f} KiB"
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


_WHOLE_JOB = ("processor s", "TFLOP")
# Heading of each column that costs something, with the attribute of a row that holds it.
COSTS = {
    "tuned %": "tuned_percent",
    "s/epoch": "epoch_seconds",
    "processor s": "processor_seconds",
    "TFLOP": "teraflop",
    "peak memory": "peak_memory_bytes",
    "delta size": "delta_bytes",
}


def measure_column(rows: Sequence[Row]) -> str:
    """Name the measure that rows are ranked by, as the heading of its column.

    Returns:
        E.g. ``"accuracy %"``; all of them, where groups are measured differently.
    """
    return " or ".join(dict.fromkeys(row.group.measure for row in rows) or [ACCURACY]) + " %"


def cost_text(column: str, value: float | None) -> str:
    """Write a cost."""
    if column in ("peak memory", "delta size"):
        return memory_text(value)
    if column == "tuned %":
        return _percent(value)
    return significant(value)


def costs_of(rows: Sequence[Row]) -> dict[str, str]:
    """Return :data:`COSTS`; those of whole runs, which not all records have, where they are known of any row."""
    known = _whole_job(rows)
    return {name: part for name, part in COSTS.items() if name in known or name not in _WHOLE_JOB}


def _columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """Name the columns of a table of rows; recalls are averaged where accuracy tells too little."""
    balanced = ("balanced %",) if any(row.uneven for row in rows) else ()
    calibration = CALIBRATION if _is_calibration_known(rows) else ()
    return (
        *("method", "tuned %", measure_column(rows), *balanced, *calibration, "NC1", "NC2", "learning rate"),
        *("s/epoch", *_whole_job(rows), "peak memory", "delta size", "seeds"),
    )


def _whole_job(rows: Sequence[Row]) -> list[str]:
    return [name for name in _WHOLE_JOB if any(getattr(row, COSTS[name]) is not None for row in rows)]


def _is_calibration_known(rows: Sequence[Row]) -> bool:
    return any(row.calibration_error is not None for row in rows)


def _cells(row: Row, best: bool, balanced: bool, calibration: bool, whole_job: Sequence[str]) -> tuple[Entry, ...]:
    """Write one row of the table of a group."""
    costs = {name: Entry(cost_text(name, value := getattr(row, part)), value=value) for name, part in COSTS.items()}
    rates = ", ".join(f"{rate:g}" for rate in row.learning_rates) or NOTHING
    errors = [number(row.calibration_error, "{:.1f}"), number(row.tempered_calibration_error, "{:.1f}")]
    recall = Entry(_percent(row.balanced_accuracy), value=row.balanced_accuracy)
    return (
        Entry(row.label),
        costs["tuned %"],
        Entry(accuracy_text(row), best, row.accuracy),
        *([recall] if balanced else []),
        *(errors if calibration else []),
        Entry(measure_text(row.nc1, row.nc1_sd), value=row.nc1),
        Entry(measure_text(row.nc2, row.nc2_sd), value=row.nc2),
        Entry(f"{rates}{AT_EDGE if row.at_edge else ''}", value=max(row.learning_rates, default=None)),
        costs["s/epoch"],
        *(costs[name] for name in whole_job),
        costs["peak memory"],
        costs["delta size"],
        Entry(_seeds_text(row), value=row.seeds),
    )


def _seeds_text(row: Row) -> str:
    fates = ", ".join(filter(None, (row.lost_words, row.missing_words)))
    return f"{row.seeds} ({fates})" if fates else f"{row.seeds}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def group_table(rows: Sequence[Row]) -> Table:
    """Tabulate one group: a row for each method."""
    best, balanced = best_rows(rows), any(row.uneven for row in rows)
    calibration, whole_job = _is_calibration_known(rows), _whole_job(rows)
    lines = tuple(_cells(row, row in best, balanced, calibration, whole_job) for row in rows)
    return Table(_columns(rows), lines)


_PLACES = {"data set": "dataset", "backbone": "network", "training size": "size"}


def _place_cell(part: str, row: Row) -> Entry:
    return Entry(getattr(row.group, part), value=row.train_size if part == "size" else None)


def long_table(rows: Sequence[Row]) -> Table:
    """Tabulate everything in one table: data set, backbone and training size have columns where they vary."""
    best = {id(row) for members in by_group(rows).values() for row in best_rows(members)}
    balanced = any(row.uneven for row in rows)
    vary = {name: part for name, part in _PLACES.items() if len({getattr(row.group, part) for row in rows}) > 1}
    vary = vary or {"data set": "dataset"}
    lines = []
    for row in rows:
        cells = _cells(row, id(row) in best, balanced, _is_calibration_known(rows), _whole_job(rows))
        lines.append((cells[0], *(_place_cell(part, row) for part in vary.values()), *cells[1:]))
    columns = _columns(rows)
    return Table((columns[0], *vary, *columns[1:]), tuple(lines))


def overview_table(rows: Sequence[Row]) -> Table:
    """Tabulate all groups beside each other: methods downwards, groups across, accuracy / NC1 in the cells."""
    groups = by_group(rows)
    lines = {label: [Entry(label), *[Entry(NOTHING)] * len(groups)] for label in row_labels(rows).values()}
    for column, members in enumerate(groups.values(), start=1):
        best = best_rows(members)
        for row in members:
            text = f"{accuracy_text(row)} / {significant(row.nc1)}"
            lines[row.label][column] = Entry(text, row in best, row.accuracy)
    return Table(("method", *setting_names(groups).values()), tuple(map(tuple, lines.values())))
