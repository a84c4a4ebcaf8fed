"""Reports of a benchmark: ``report.md``, a ``report.html`` that needs no network, and tables for the terminal."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from nc_finetune.benchmark.content import Report, build_report, status_words
from nc_finetune.benchmark.figures import to_png, vegalite_version
from nc_finetune.benchmark.markdown import render_markdown
from nc_finetune.benchmark.results import Result
from nc_finetune.benchmark.summary import by_group, finished_runs, summarize, variant_labels
from nc_finetune.benchmark.tables import Table, group_table
from nc_finetune.errors import missing_extra
from nc_finetune.files import write_atomically, write_text_atomically

_EXTRA = {"altair": "altair", "vl_convert": "vl-convert-python", "jinja2": "jinja2"}
_TERMINAL_COLUMNS = 6  # time, memory and seeds would not fit into 80 characters


def check_report_extra() -> None:
    """Import what a report needs: a benchmark calls this before it trains, not to fail after it.

    Raises:
        ImportError: If a package of the extra ``report`` is not installed.
    """
    for module, package in _EXTRA.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise missing_extra(package, "report", "writing a benchmark report") from error


def _html(report: Report) -> str:
    """Fill the template; it holds the drawing library, so that the page opens without a network."""
    import jinja2
    import vl_convert

    template = resources.files("nc_finetune").joinpath("benchmark/templates/report.html.jinja")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    specs = [picture.figure.spec for section in report.sections for picture in section.pictures]
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vegalite_version())
    # A script ends at the first "</script", even inside a string of JavaScript.
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        report=report, specs=specs, bundle=bundle.replace("</script", r"<\/script")
    )


class ReportFiles(NamedTuple):
    """Where a report is.

    Attributes:
        markdown: For a repository.
        page: For a browser.
    """

    markdown: Path
    page: Path


def write_report(results: Sequence[Result], folder: Path, problems: Sequence[str] = ()) -> ReportFiles:
    """Write ``report.md``, ``report.html`` and the pictures of the former, ``figures/*.png``.

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
    check_report_extra()
    report = build_report(results)
    for section in report.sections:
        for picture in section.pictures:
            write_atomically(folder / picture.file, to_png(picture.figure))
    markdown, page = folder / "report.md", folder / "report.html"
    write_text_atomically(markdown, render_markdown(report))
    write_text_atomically(page, _html(report))
    return ReportFiles(markdown, page)


def _rich_table(title: str, table: Table) -> RichTable:
    """Turn a table into rich's; as ``Text``, names with square brackets are not taken for markup."""
    view = RichTable(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, column in enumerate(table.columns[:_TERMINAL_COLUMNS]):
        view.add_column(column, justify="right" if index else "left")
    for row in table.rows:
        view.add_row(*(Text(cell.text, style="bold" if cell.best else "") for cell in row[:_TERMINAL_COLUMNS]))
    return view


def print_summary(results: Sequence[Result], console: Console) -> None:
    """Print the tables of a report: one per data set, backbone, weights and training size.

    Args:
        results: Runs of a benchmark.
        console: Where to print.

    Raises:
        ValueError: If NC1 was measured by different conventions, or a row holds a seed twice.
    """
    labels = variant_labels(finished_runs(results))
    for group, rows in by_group(summarize(results)).items():
        console.print(_rich_table(group.label, group_table(rows, labels)))
    console.print(Text(status_words(results)))
