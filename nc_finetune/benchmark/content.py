"""What a report says, before it is put into markdown or HTML."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nc_finetune.benchmark.analysis import (
    cheapest_near_best,
    correlation_table,
    correlation_text,
    nc1_correlation,
    pareto_table,
    wins,
    worst_table,
)
from nc_finetune.benchmark.charts import accuracy_against_cost, accuracy_against_size, learning_curves
from nc_finetune.benchmark.figures import Figure, Style, accuracy_against_nc1, layerwise_nc1, palette
from nc_finetune.benchmark.results import Result
from nc_finetune.benchmark.selectors import selector_table
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
from nc_finetune.benchmark.tables import (
    NOTHING,
    Cell,
    Table,
    accuracy_text,
    group_table,
    overview_table,
    significant,
)

_TITLE = "Benchmark report"
_FORMULAS = {"none": "tr(Σ_W Σ_B†)", "classes": "tr(Σ_W Σ_B†) / K"}
# More would make report.md long and slow; report.html draws every group on demand.
_MOST_GROUP_PICTURES = 6
_MOST_GROUPS_IN_WORDS = 3
_STATUS_WORDS = {"ok": "finished", "diverged": "diverged", "failed": "failed"}


_CORRELATION_NOTE = (
    "Rank correlation of test accuracy and NC1 of what the classifier sees; -1 where less NC1 always goes with more "
    "accuracy. The interval takes runs for independent, which runs on one data set are not quite. NC1 depends on the "
    "number of samples, so that scopes with one training size say most."
)
_PARETO_NOTE = "Bold: nothing in the same setting is as accurate at a lower cost of this kind, or more so at no higher."
_SELECTOR_NOTE = (
    "Regret: points of test accuracy below the best block of the same data set, backbone, training size, method and "
    "seed. Brute force tunes every block and takes the best on the validation split. Argmin NC1 takes the smallest "
    "pre-trained NC1, Auto-RGN the largest relative gradient norm."
)
_WORST_NOTE = "Share of the test images of a class that are recognised, all seeds together; the three lowest."


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
        kind: ``"overview"`` where the columns are groups, ``"group"`` for the table of one, else ``"analysis"``.
        note: How to read it.
    """

    title: str
    table: Table
    pictures: tuple[Picture, ...] = ()
    kind: Literal["overview", "group", "analysis"] = "analysis"
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What a report says, before it is put into markdown or HTML; all of it plain text.

    Attributes:
        title: Heading of the report.
        summary: The outcome in words.
        notes: How to read the tables.
        sections: All groups beside each other where there are several, then group by group, then what follows.
        failures: The runs without a result, and the files that could not be read.
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


def _wins_words(rows: Sequence[Row], labels: Mapping[Variant, str]) -> str:
    """Say how often each method came first, where naming every group would be too long."""
    counts = wins(rows, labels)
    number = len(by_group(rows))
    named = ", ".join(f"{label} in {count}" for label, count in counts.most_common())
    return f"Of {number} settings (data set, backbone, training size), the highest mean accuracy is that of {named}."


def _cost_words(rows: Sequence[Row], labels: Mapping[Variant, str]) -> str:
    """Say what comes within one point of the best at the least time."""
    near = cheapest_near_best(rows)
    full = [row for row in rows if row.variant.method == "full_ft" and row.epoch_seconds]
    if near is None or len(rows) < 2:
        return ""
    words = (
        f"The fastest within one point of it is {labels[near.variant]}, {significant(near.epoch_seconds)} s an epoch"
    )
    if full and near.variant.method != "full_ft" and near.epoch_seconds:
        factor = (full[0].epoch_seconds or 0.0) / near.epoch_seconds
        words += f", {factor:.1f} times as fast as full FT" if factor >= 1 else ", slower than full FT"
    return f"{words}."


def _correlation_words(finished: Sequence[Result]) -> str:
    """Say how accuracy goes with NC1."""
    found = nc1_correlation(finished)
    if found is None:
        return ""
    value, interval = correlation_text(found)
    across = " (across settings, whose NC1 differ for other reasons, too)" if _number_of_groups(finished) > 1 else ""
    if found.low * found.high <= 0:
        verdict = "accuracy and NC1 show no clear relation"
    else:
        verdict = f"accuracy {'falls' if found.value < 0 else 'rises'} as NC1 grows"
    return f"Over {found.number} runs{across}, {verdict}: Spearman {value}, 95 % interval {interval}."


def _number_of_groups(runs: Sequence[Result]) -> int:
    return len({group_of(run) for run in runs})


def _summary(results: Sequence[Result], rows: Sequence[Row], labels: Mapping[Variant, str]) -> str:
    """Put the outcome into words."""
    seeds = [_seed_words(rows)] if rows else []
    groups = by_group(rows)
    if len(groups) > _MOST_GROUPS_IN_WORDS:
        outcome = [_wins_words(rows, labels)]
    else:
        outcome = [
            part
            for members in groups.values()
            for part in (_group_words(members, labels), _cost_words(members, labels))
        ]
    words = [status_words(results), *seeds, *outcome, _correlation_words(finished_runs(results))]
    return " ".join(part for part in words if part)


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
        "s/epoch: mean time of one training pass. Peak memory: largest of the seeds. Delta size: what a file of the "
        "tuned part and the head takes."
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
    groups = by_group(rows)
    for place, (group, members) in enumerate(groups.items()):
        runs = [run for run in finished if group_of(run) == group]
        slug = _slug(group.label)
        stems[slug] += 1
        # Names that differ only in punctuation must not overwrite each other's pictures.
        stem = slug if stems[slug] == 1 else f"{slug}_{stems[slug]}"
        figures: dict[str, Figure | None] = {}
        if place < _MOST_GROUP_PICTURES:
            figures["layers"] = layerwise_nc1(runs, labels, styles)
        if len(groups) == 1:
            figures["accuracy"] = accuracy_against_nc1(runs, labels, styles)
            figures["cost"] = accuracy_against_cost(members, labels, styles)
            figures["curves"] = learning_curves(runs, labels, styles)
        yield Section(group.label, group_table(members, labels), _pictures(stem, figures), kind="group")


def _overview(
    rows: Sequence[Row], finished: Sequence[Result], labels: Mapping[Variant, str], styles: Mapping[str, Style]
) -> Iterator[Section]:
    """Put all groups beside each other, where there are several."""
    if len(by_group(rows)) < 2:
        return
    figures = {
        "accuracy": accuracy_against_nc1(finished, labels, styles),
        "sizes": accuracy_against_size(rows, labels, styles),
    }
    pictures = _pictures("overview", figures)
    yield Section("Overview: accuracy % / NC1", overview_table(rows, labels), pictures, kind="overview")


def _analyses(rows: Sequence[Row], finished: Sequence[Result], labels: Mapping[Variant, str]) -> Iterator[Section]:
    """Say what follows from the numbers."""
    found = (
        Section("Accuracy against NC1", correlation_table(finished), note=_CORRELATION_NOTE),
        Section("Accuracy against cost", pareto_table(rows, labels), note=_PARETO_NOTE),
        Section("Choice of the key layer", selector_table(finished), note=_SELECTOR_NOTE),
        Section("Worst classes", worst_table(rows, finished, labels), note=_WORST_NOTE),
    )
    yield from (section for section in found if section.table.rows)


def _sections(rows: Sequence[Row], finished: Sequence[Result], labels: Mapping[Variant, str]) -> Iterator[Section]:
    """Put the overview before the groups one by one, and what follows behind them."""
    styles = palette(labels)
    yield from _overview(rows, finished, labels, styles)
    yield from _group_sections(rows, finished, labels, styles)
    yield from _analyses(rows, finished, labels)


def _failures(results: Sequence[Result], problems: Sequence[str]) -> Table:
    """List the runs without a result, and the files that could not be read."""
    lost = [run for run in results if run.status != "ok"]
    rows = tuple((Cell(run.run_id), Cell(run.status), Cell(run.error or NOTHING)) for run in lost)
    unread = tuple((Cell(NOTHING), Cell("not read"), Cell(problem)) for problem in problems)
    return Table(("run", "status", "error"), rows + unread)


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


def build_report(results: Sequence[Result], problems: Sequence[str] = ()) -> Report:
    """Collect everything that a report says.

    Args:
        results: Runs of a benchmark.
        problems: What was left out, a sentence each.

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
        failures=_failures(results, problems),
        provenance=_provenance(results),
    )
