"""A report in GitHub's markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nc_finetune._common.markdown_text import escape_markdown
from nc_finetune.report._tables.tables import Entry, Table
from nc_finetune.report.content import Report, Section


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: Entry) -> str:
    text = escape_markdown(cell.text)
    return f"**{text}**" if cell.best else text


def _markdown_table(table: Table) -> str:
    """Write a table of GitHub's markdown."""
    head = [escape_markdown(column) for column in table.columns]
    lines = [_markdown_line(head), _markdown_line(["---"] * len(head))]
    return "\n".join([*lines, *(_markdown_line([_markdown_cell(cell) for cell in row]) for row in table.rows)])


def _markdown_section(section: Section) -> Iterator[str]:
    yield f"## {escape_markdown(section.title)}"
    if section.note:
        yield escape_markdown(section.note)
    yield _markdown_table(section.table)
    for picture in section.pictures:
        yield f"![{escape_markdown(picture.figure.description)}]({picture.file})"
        yield escape_markdown(picture.figure.caption)


def render_markdown(report: Report) -> str:
    """Write a report for a repository: blocks with an empty line between.

    Returns:
        The text; whatever markdown or HTML would act upon is escaped.
    """
    blocks = [f"# {report.title}", "\n".join(f"- {escape_markdown(point)}" for point in report.summary)]
    for section in report.sections:
        blocks.extend(_markdown_section(section))
    blocks.append(escape_markdown(report.notes))
    for title, table in (("Runs without a result", report.failures), ("Provenance", report.provenance)):
        if table.rows:
            blocks.extend([f"## {title}", _markdown_table(table)])
    return "\n\n".join(blocks) + "\n"
