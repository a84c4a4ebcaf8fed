"""Tables, sentences and progress for a terminal, a pipe or a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.box import Box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# Wide enough for any table: what a pipe or a file gets is cut by nobody.
_UNLIMITED = 10_000
_WIDEST_NAME = 24  # that a terminal always has room for; longer ones are folded
_LINE_EVERY = 60.0  # seconds between two lines of progress while nothing is finished


def open_console(stderr: bool = False) -> Console:
    """Return a console that prints names as they are, and cuts none where it writes to a pipe or a file.

    Args:
        stderr: Write to standard error.
    """
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _UNLIMITED
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def say(line: str) -> None:
    """Write a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def name_table(
    names: Sequence[str], numbers: Sequence[str], *, title: str | None = None, box: Box | None = None
) -> Table:
    """Return an empty table whose first columns hold names, which are folded where room is short and never cut.

    Args:
        names: Headings of the columns of names.
        numbers: Headings of the columns after them, which stay whole.
        title: Above the table.
        box: Lines around it; ``None`` is none.

    Example:
        >>> table = name_table(["class"], ["images"])
        >>> table.add_row(*as_text(["[red]", "3"]))
        >>> Console(width=20).print(table)
        class  images
        [red]       3
    """
    table = Table(
        box=box,
        title=None if title is None else Text(title),
        title_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for number in numbers:
        table.add_column(Text(number), justify="right", no_wrap=True)
    return table


def as_text(cells: Sequence[str], style: str = "") -> list[Text]:
    """Return cells that rich shows as they are, be there brackets or colons in them."""
    return [Text(cell, style=style) for cell in cells]


def columns_that_fit(
    headings: Sequence[str], rows: Sequence[Sequence[str]], console: Console, box: Box | None = None, least: int = 2
) -> int:
    """Say how many columns of a table a console has room for; the first holds names.

    Args:
        headings: Of all columns.
        rows: Their cells.
        console: Where the table is to go.
        box: Lines around it.
        least: As many are shown in any case.
    """
    unlimited = console.options.update(width=_UNLIMITED)
    for number in range(len(headings), least, -1):
        table = name_table(headings[:1], headings[1:number], box=box)
        for row in rows:
            table.add_row(*as_text([row[0][:_WIDEST_NAME], *row[1:number]]))
        if Measurement.get(console, unlimited, table).maximum <= console.width:
            return number
    return least


class Steps(Protocol):
    """Shows how far some work has come."""

    def advance(self, number: int = 1) -> None:
        """Count steps that are done."""

    def finish(self, completed: int, said: str) -> None:
        """Say what has been finished, at which so many steps are done: also those that were left out."""


@contextmanager
def shown_steps(unit: str, total: int, console: Console | None = None) -> Iterator[Steps]:
    """Show progress on standard error: a bar on a terminal, and elsewhere a plain line for whatever is finished.

    Args:
        unit: What is counted, a plural.
        total: How many there are.
        console: Where it goes instead of standard error.
    """
    console = console or open_console(stderr=True)
    if not console.file.isatty():  # not is_terminal, which FORCE_COLOR makes true for a pipe
        yield _Lines(unit, total, console)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        yield _Bar(unit, total, bar)


class _Bar:
    def __init__(self, unit: str, total: int, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task(unit, total=total)

    def advance(self, number: int = 1) -> None:
        self._bar.advance(self._task, number)

    def finish(self, completed: int, said: str) -> None:
        self._bar.update(self._task, completed=completed, description=said)


class _Lines:
    def __init__(self, unit: str, total: int, console: Console) -> None:
        self._unit = unit
        self._total = total
        self._console = console
        self._done = 0
        self._start = self._last = time.monotonic()

    def advance(self, number: int = 1) -> None:
        self._done += number
        if time.monotonic() - self._last > _LINE_EVERY:
            self._say("")

    def finish(self, completed: int, said: str) -> None:
        self._done = completed
        self._say(f"; {said}")

    def _say(self, said: str) -> None:
        self._last = time.monotonic()
        spent = self._last - self._start
        left = f", about {duration(spent / self._done * (self._total - self._done))} left" if self._done else ""
        line = f"{self._unit}: {self._done} of {self._total}, {duration(spent)}{left}{said}"
        self._console.print(Text(line), soft_wrap=True)


def duration(seconds: float) -> str:
    """Write a time as a person would.

    Example:
        >>> [duration(value) for value in (4.2, 200, 8000, 200_000)]
        ['4 s', '3 min', '2.2 h', '56 h']
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"


def plain_numbers(values: dict[str, Any]) -> str:
    """Write the numbers among values that were logged in one line.

    Example:
        >>> plain_numbers({"val/accuracy": 0.8125, "train/loss": 1.5, "v_num": "x"})
        'val/accuracy 0.8125, train/loss 1.5'
    """
    found = {name: value for name, value in values.items() if isinstance(value, (int, float))}
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items())
