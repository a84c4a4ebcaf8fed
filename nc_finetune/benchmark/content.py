"""What a report says, before it is put into markdown or HTML."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nc_finetune.benchmark.figures import Figure, Style, accuracy_against_nc1, layerwise_nc1, palette
from nc_finetune.benchmark.results import Result
from nc_finetune.benchmark.summary import (
    Row,
    Variant,
    best_rows,
    by_group,
    finished_runs,
    group_of,
    summarize,
    variant_labels,
)
from nc_finetune.benchmark.tables import NOTHING, Cell, Table, accuracy_text, group_table, overview_table

_TITLE = "Benchmark report"
_FORMULAS = {"none": "tr(Σ_W Σ_B†)", "classes": "tr(Σ_W Σ_B†) / K"}
_STATUS_WORDS = {"ok": "finished", "diverged": "diverged", "failed": "failed"}


@dataclass(frozen=True)
class Picture:
    """A figure and the PNG file that holds it.

    Attributes:
        figure: What is drawn.
        file: Path of the PNG file, relative to the report.
    """

    figure: Figure
    file: str


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes:
        title: Its heading.
        table: Its numbers.
        pictures: Its figures; empty where no NC1 was measured.
        overview: Whether its columns are groups, whose long names need room.
    """

    title: str
    table: Table
    pictures: tuple[Picture, ...] = ()
    overview: bool = False


@dataclass(frozen=True)
class Report:
    """What a report says, before it is put into markdown or HTML; all of it plain text.

    Attributes:
        title: Heading of the report.
        summary: The outcome in words.
        notes: How to read the tables.
        sections: All groups beside each other where there are several, then group by group.
        failures: The runs without a result.
        provenance: Where the results come from.
    """

    title: str
    summary: str
    notes: str
    sections: tuple[Section, ...]
    failures: Table
    provenance: Table


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def status_words(results: Sequence[Result]) -> str:
    """Count the runs by what became of them."""
    counts = collections.Counter(str(run.status) for run in results)
    words = [f"{counts[status]} {word}" for status, word in _STATUS_WORDS.items() if counts[status]]
    return f"{_count(len(results), 'run')}: {', '.join(words)}."


def _seed_words(rows: Sequence[Row]) -> str:
    """Say how many seeds the means are over."""
    fewest, most = min(row.seeds for row in rows), max(row.seeds for row in rows)
    if most == 1:
        return "Every value is of a single seed."
    return f"Every mean is over {most if fewest == most else f'{fewest} to {most}'} seeds."


def _share_words(row: Row) -> str:
    share = "" if row.tuned_percent is None else f", {row.tuned_percent:.2f} % of the parameters tuned"
    return f"{accuracy_text(row)} %{share}"


def _group_words(rows: Sequence[Row], labels: Mapping[Variant, str]) -> str:
    """Say who came first in a group, and who second."""
    place, best = rows[0].group.label, best_rows(rows)
    if not best:
        return f"On {place}, no run has an accuracy."
    named = " and ".join(f"{labels[row.variant]} ({_share_words(row)})" for row in best)
    if len(rows) == 1:
        return f"On {place}, there is only {named}."
    others = [row for row in rows if row.accuracy is not None and row not in best]
    second = best_rows(others)
    behind = f", followed by {labels[second[0].variant]} ({_share_words(second[0])})" if second else ""
    return f"On {place}, the highest mean accuracy is that of {named}{behind}."


def _summary(results: Sequence[Result], rows: Sequence[Row], labels: Mapping[Variant, str]) -> str:
    """Put the outcome into words."""
    seeds = [_seed_words(rows)] if rows else []
    groups = [_group_words(members, labels) for members in by_group(rows).values()]
    return " ".join([status_words(results), *seeds, *groups])


def _notes(finished: Sequence[Result]) -> str:
    """Explain the columns, with the convention by which NC1 was measured."""
    if not finished:
        return "No run finished, so there is nothing to tabulate."
    convention = finished[0].nc1_normalize
    return (
        "Accuracy is on the test split. Values are means over seeds, ± is their sample standard deviation (none for a "
        "single seed), the highest mean accuracy is in bold. tuned %: parameters trained, the head's included. NC1 is "
        f"{_FORMULAS.get(convention, convention)} of what the classifier sees, on the training split; NC2 the "
        "distance of its class means from a simplex ETF; both are 0 at the collapse. "
        "s/epoch: mean time of one training pass. Peak memory: largest of the seeds."
    )


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:80]


def _pictures(stem: str, figures: Mapping[str, Figure | None]) -> tuple[Picture, ...]:
    """Name the file of every figure that could be drawn."""
    return tuple(
        Picture(figure, f"figures/{stem}_{kind}.png") for kind, figure in figures.items() if figure is not None
    )


def _group_sections(
    rows: Sequence[Row], finished: Sequence[Result], labels: Mapping[Variant, str], styles: Mapping[str, Style]
) -> Iterator[Section]:
    """Describe group by group."""
    stems: collections.Counter[str] = collections.Counter()
    for group, members in by_group(rows).items():
        runs = [run for run in finished if group_of(run) == group]
        slug = _slug(group.label)
        stems[slug] += 1
        # Names that differ only in punctuation must not overwrite each other's pictures.
        stem = slug if stems[slug] == 1 else f"{slug}_{stems[slug]}"
        figures = {
            "layers": layerwise_nc1(runs, labels, styles),
            "accuracy": accuracy_against_nc1(runs, labels, styles),
        }
        yield Section(group.label, group_table(members, labels), _pictures(stem, figures))


def _sections(rows: Sequence[Row], finished: Sequence[Result], labels: Mapping[Variant, str]) -> Iterator[Section]:
    """Put all groups beside each other, where there are several, before the groups one by one."""
    styles = palette(labels)
    if len(by_group(rows)) > 1:
        figures = {"accuracy": accuracy_against_nc1(finished, labels, styles)}
        yield Section(
            "Overview: accuracy % / NC1", overview_table(rows, labels), _pictures("overview", figures), overview=True
        )
    yield from _group_sections(rows, finished, labels, styles)


def _failures(results: Sequence[Result]) -> Table:
    """List the runs without a result."""
    lost = [run for run in results if run.status != "ok"]
    rows = tuple((Cell(run.run_id), Cell(run.status), Cell(run.error or NOTHING)) for run in lost)
    return Table(("run", "status", "error"), rows)


def _commit_text(provenance: Mapping[str, Any]) -> str:
    return f"{provenance['git_commit']}{' with uncommitted changes' if provenance.get('git_dirty') else ''}"


def _facts(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Spell out one provenance; packages and other nested facts get a line each, unknown facts none."""
    for key, value in provenance.items():
        name = key.replace("_", " ")
        if isinstance(value, Mapping):
            prefix = "" if key == "versions" else f"{name}: "
            yield from ((f"{prefix}{inner}", str(fact)) for inner, fact in value.items() if fact is not None)
        elif value is not None and key != "git_dirty":
            yield name, _commit_text(provenance) if key == "git_commit" else str(value)


def _provenance(results: Sequence[Result]) -> Table:
    """Collect the distinct values of every fact; a dict keeps them in order."""
    values: dict[str, dict[str, None]] = {}
    for run in results:
        for name, value in _facts(run.provenance):
            values.setdefault(name, {})[value] = None
    rows = tuple((Cell(name), Cell(", ".join(distinct))) for name, distinct in values.items())
    return Table(("what", "value"), rows)


def build_report(results: Sequence[Result]) -> Report:
    """Collect everything that a report says.

    Args:
        results: Runs of a benchmark.

    Returns:
        The content, without markup.

    Raises:
        ValueError: If there are no results, if NC1 was measured by different conventions, or a row holds a seed twice.
        ImportError: If altair is not installed.
    """
    if not results:
        raise ValueError("a report needs at least one result, none was given: run the benchmark first")
    finished, rows = finished_runs(results), summarize(results)
    labels = variant_labels(finished)
    return Report(
        title=_TITLE,
        summary=_summary(results, rows, labels),
        notes=_notes(finished),
        sections=tuple(_sections(rows, finished, labels)),
        failures=_failures(results),
        provenance=_provenance(results),
    )
