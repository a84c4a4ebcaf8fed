"""Reports of a benchmark: ``report.md``, ``report.html``, ``results.csv``, and tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from nc_finetune._common.atomic_files import write_atomically, write_text_atomically
from nc_finetune._common.terminal import columns_that_fit, name_table
from nc_finetune.report._tables.score import ACCURACY
from nc_finetune.report._tables.summary import by_group, summarize
from nc_finetune.report._tables.tables import Table, group_table
from nc_finetune.report.content import build_report
from nc_finetune.report.figures import check_report_extra as check_report_extra
from nc_finetune.report.figures import to_png
from nc_finetune.report.markdown import render_markdown
from nc_finetune.report.outcome import lost_words, status_words
from nc_finetune.report.page import render_page
from nc_finetune.report.spreadsheet import render_csv
from nc_finetune.results.result import Result

_SEVERAL_LABELS = "average_precision"


class ReportFiles(NamedTuple):
    """Where a report is.

    Attributes:
        markdown: For a repository.
        page: For a browser.
        table: Every run, for a spreadsheet.
    """

    markdown: Path
    page: Path
    table: Path


def write_report(results: Sequence[Result], folder: Path, problems: Sequence[str] = ()) -> ReportFiles:
    """Write ``report.md`` with its pictures, ``figures/*.png``, ``report.html`` and ``results.csv``.

    Accuracy and average precision never stand beside each other: where there are runs of both, those on images with
    several labels have a report of their own, in the folder ``average_precision``.

    Args:
        results: Runs of a benchmark; those that failed or diverged are listed with their error.
        folder: Where the report goes; it is made.
        problems: What was left out, a sentence each.

    Returns:
        The paths of the files.

    Raises:
        ValueError: If there are no results, if NC1 was measured by different conventions, or a row holds a seed twice.
        ImportError: If a package of the extra ``report`` is not installed.
    """
    several = [run for run in results if run.status == "ok" and run.measure != ACCURACY]
    if several and len(several) < sum(run.status == "ok" for run in results):
        # What came to nothing does not know its measure; its data set does.
        names = {run.dataset for run in several}
        several += [run for run in results if run.status != "ok" and run.dataset in names]
        _write_files(several, folder / _SEVERAL_LABELS, ())
        problems = [*problems, f"{len(several)} runs on images with several labels; see {_SEVERAL_LABELS}/report.html"]
        results = [run for run in results if run not in several]
    return _write_files(results, folder, problems)


def _write_files(results: Sequence[Result], folder: Path, problems: Sequence[str]) -> ReportFiles:
    """Write the report of runs with one measure."""
    report = build_report(results, problems)
    for section in report.sections:
        for picture in section.pictures:
            write_atomically(folder / picture.file, to_png(picture.figure))
    files = ReportFiles(folder / "report.md", folder / "report.html", folder / "results.csv")
    write_text_atomically(files.markdown, render_markdown(report))
    write_text_atomically(files.page, render_page(report))
    write_text_atomically(files.table, render_csv(results))
    return files


def _rich_table(title: str, table: Table, console: Console) -> RichTable:
    """Turn a table into rich's, with as many columns as there is room for; the report has them all."""
    rows = [[cell.text for cell in row] for row in table.rows]
    number = columns_that_fit(table.columns, rows, console, SIMPLE_HEAD)
    view = name_table(table.columns[:1], table.columns[1:number], title=title, box=SIMPLE_HEAD)
    for row in table.rows:
        view.add_row(*(Text(cell.text, style="bold" if cell.best else "") for cell in row[:number]))
    return view


def print_summary(results: Sequence[Result], console: Console) -> None:
    """Print the tables of a report: one per data set, backbone, weights and training size.

    Args:
        results: Runs of a benchmark.
        console: Where to print.

    Raises:
        ValueError: If NC1 was measured by different conventions, or a row holds a seed twice.
    """
    rows = summarize(results)
    for group, members in by_group(rows).items():
        console.print(_rich_table(group.label, group_table(members), console))
    said = " ".join(filter(None, [status_words(results), lost_words(rows)]))
    console.print(Text(said), soft_wrap=True)
