"""Tables, sentences and progress for a terminal, a pipe or a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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


class Steps:
    """Says how far some work has come: by a bar on a terminal, and elsewhere by a plain line for what is finished.

    Args:
        unit: What is counted, a plural.
        total: How many there are.
        console: Where it goes.
    """

    def __init__(self, unit: str, total: int, console: Console) -> None:
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()),
            console=console,
            disable=not console.file.isatty(),  # not is_terminal, which FORCE_COLOR makes true for a pipe
        )
        self._unit = unit
        self.bar.add_task(unit, total=total)
        (self._task,) = self.bar.tasks
        self._last = time.monotonic()

    def advance(self, number: int = 1) -> None:
        """Count steps that are done."""
        self.bar.advance(self._task.id, number)
        if time.monotonic() - self._last > _LINE_EVERY:
            self._say("")

    def finish(self, completed: int, said: str) -> None:
        """Say what has been finished, at which so many steps are done: also those that were left out."""
        self.bar.update(self._task.id, completed=completed, description=said)
        self._say(f"; {said}")

    def _say(self, said: str) -> None:
        self._last = time.monotonic()
        done, total, spent = self._task.completed, self._task.total or 0, self._task.elapsed or 0
        left = f", about {duration(spent / done * (total - done))} left" if done else ""
        if self.bar.disable:
            line = f"{self._unit}: {done} of {total}, {duration(spent)}{left}{said}"
            self.bar.console.print(Text(line), soft_wrap=True)


@contextmanager
def shown_steps(unit: str, total: int, console: Console | None = None) -> Iterator[Steps]:
    """Show :class:`Steps` until the end of some work, on standard error where no console is given."""
    steps = Steps(unit, total, console or open_console(stderr=True))
    with steps.bar:
        yield steps


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
