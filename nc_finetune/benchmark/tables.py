"""The tables that every report shows: for the terminal, markdown and HTML alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nc_finetune.benchmark.summary import Row, Variant, best_rows, by_group

NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """One cell of a table, as plain text; whoever shows it escapes it.

    Attributes:
        text: What it says.
        best: Whether it holds the highest mean accuracy of its group.
    """

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table, the same for the terminal, markdown and HTML.

    Attributes:
        columns: The heading of each column.
        rows: The cells; the first one of a row names it.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def significant(value: float | None, digits: int = 3) -> str:
    """Write a number with a fixed count of significant digits, and an exponent only where it is very long without.

    Args:
        value: The number, or ``None``.
        digits: How many digits count; three tell runs apart without pretending to more.

    Returns:
        The text; a dash for ``None``.

    Example:
        >>> [significant(value) for value in (0.22345, 18.361, 1234.5, 7e-7, 0.0, None)]
        ['0.223', '18.4', '1234', '7.00e-07', '0', '–']
    """
    if value is None or value == 0:
        return NOTHING if value is None else "0"
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent < 5:
        return f"{value:.{max(digits - 1 - exponent, 0)}f}"
    return f"{value:.{digits - 1}e}"


def accuracy_text(row: Row) -> str:
    """Write the accuracy of a row.

    Args:
        row: Any row.

    Returns:
        Mean in per cent, with the standard deviation where there is one.
    """
    if row.accuracy is None:
        return NOTHING
    return f"{row.accuracy:.2f}" + ("" if row.accuracy_sd is None else f" ± {row.accuracy_sd:.2f}")


def measure_text(mean: float | None, sd: float | None) -> str:
    """Write a collapse measure of a row.

    Args:
        mean: Mean over seeds.
        sd: Its standard deviation, where there is one.

    Returns:
        Both in words; a dash where nothing was measured.

    Example:
        >>> measure_text(0.22345, 0.0123)
        '0.223 ± 0.012'
    """
    return significant(mean) + ("" if sd is None else f" ± {significant(sd, 2)}")


def _memory_text(size: int | None) -> str:
    if size is None:
        return NOTHING
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _cells(row: Row, label: str, best: bool) -> tuple[Cell, ...]:
    """Write one row of the table of a group."""
    return (
        Cell(label),
        Cell(NOTHING if row.tuned_percent is None else f"{row.tuned_percent:.2f}"),
        Cell(accuracy_text(row), best),
        Cell(measure_text(row.nc1, row.nc1_sd)),
        Cell(measure_text(row.nc2, row.nc2_sd)),
        Cell(", ".join(f"{rate:g}" for rate in row.learning_rates) or NOTHING),
        Cell(significant(row.epoch_seconds)),
        Cell(_memory_text(row.peak_memory_bytes)),
        Cell(str(row.seeds)),
    )


def group_table(rows: Sequence[Row], labels: Mapping[Variant, str]) -> Table:
    """Tabulate one group: a row for each method.

    Args:
        rows: The rows of one group.
        labels: Display names, from :func:`variant_labels`.

    Returns:
        The table.
    """
    columns = ("method", "tuned %", "accuracy %", "NC1", "NC2", "learning rate", "s/epoch", "peak memory", "seeds")
    best = best_rows(rows)
    return Table(columns, tuple(_cells(row, labels[row.variant], row in best) for row in rows))


def overview_table(rows: Sequence[Row], labels: Mapping[Variant, str]) -> Table:
    """Tabulate all groups beside each other: methods downwards, groups across, accuracy / NC1 in the cells.

    Args:
        rows: The rows of all groups.
        labels: Display names, from :func:`variant_labels`.

    Returns:
        The table.
    """
    groups = by_group(rows)
    lines = {label: [Cell(label), *[Cell(NOTHING)] * len(groups)] for label in labels.values()}
    for column, members in enumerate(groups.values(), start=1):
        best = best_rows(members)
        for row in members:
            lines[labels[row.variant]][column] = Cell(f"{accuracy_text(row)} / {significant(row.nc1)}", row in best)
    return Table(("method", *(group.label for group in groups)), tuple(map(tuple, lines.values())))
