"""What a report says, before it is put into markdown or HTML."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nc_finetune.report._tables.analysis import correlation_table, pareto_table, worst_table
from nc_finetune.report._tables.classes import close_table, spread_table
from nc_finetune.report._tables.data_tables import data_table, notes_table
from nc_finetune.report._tables.selectors import selector_table
from nc_finetune.report._tables.standings import choice_table, comparison_table, recommended, standings, standings_table
from nc_finetune.report._tables.summary import Row, by_group, finished_runs, row_labels, summarize
from nc_finetune.report._tables.tables import NOTHING, Table, group_table, measure_column, overview_table
from nc_finetune.report.charts import (
    accuracy_against_cost,
    accuracy_against_nc1,
    accuracy_against_size,
    layerwise_nc1,
    learning_curves,
)
from nc_finetune.report.figures import Figure, Style, check_report_extra, palette
from nc_finetune.report.outcome import outcome
from nc_finetune.results.result import Measure, Result

_TITLE = "Benchmark report"
_FORMULAS = {"none": "tr(Σ_W Σ_B†)", "classes": "tr(Σ_W Σ_B†) / K"}
_MEASURES: dict[Measure, str] = {
    "accuracy": "Accuracy is on the test split.",
    "average precision": (
        "Images have several labels each, and average precision is on the test split: how well the images of a class "
        "are ranked before the others, the mean over classes. NC1 and NC2 are of the images with one label alone."
    ),
}
# More would make report.md long and slow: then the first is an example, and report.html draws each on demand.
_MOST_GROUP_PICTURES = 6

_COMPARISON_NOTE = (
    "Differences of runs of the same setting and seed; the mean over settings, each of which counts the same. Above "
    "0: {} is ahead. The intervals hold for all pairs of methods together with 95 % (Student's t over the seeds, the "
    "settings as they are; Bonferroni), since the best of many looks good by chance, too; where differences vary ten "
    "times as much in one of few settings as in the others, with 90 %. Ahead or behind: the interval lies on one side "
    "of 0. Unpaired runs have no counterpart of the same seed and sample, and do not count. Over data sets: the "
    "interval where these are random, too (Student's t over data sets, each of which counts the same; Bonferroni). "
    "Epochs: how many times as fast, whole run: how many times as much time of the processors the other one takes, "
    "geometric means; what neighbouring runs share, such as decoded images, counts in the first of them, which tells "
    "where runs take seconds."
)
_NO_FACTS = ("git_dirty", "splits_hash")  # said beside the commit, and another one for each seed
_STANDINGS_NOTE = (
    "Over all settings (data set, backbone, training size) that are in this report, compared on the seeds that two "
    "methods share. Rank 1 is the best of a setting. Not below probe: settings in which it is at least as good as the "
    "linear probe. Epochs vs full FT: how many times as fast; whole run: how many times as little time of the "
    "processors, choices included, but for what runs share, which counts in the first of them; geometric means. A mean "
    "stands only where a method was run in every setting. Bold: recommended, the best of what tunes at most 10 % of "
    "the parameters, or trains nothing, lost no run, and is no control, on the settings and seeds that these share; as "
    "it is chosen by these numbers, they flatter it a little."
)
_CHOICE_NOTE = (
    "\N{CHECK MARK}: within 1 point of the best of all, or not below what it is compared with. Of a method with "
    "several variants, the best one in the setting counts."
)
_CORRELATION_NOTE = (
    "Rank correlation of the test result and NC1 of what the classifier sees; -1 where less NC1 always goes with a "
    "better result. The interval takes runs for independent, which runs on one data set are not quite. NC1 depends on "
    "the number of samples, so that scopes with one training size say most."
)
_PARETO_NOTE = "Bold: nothing in the same setting is as good at a lower cost of this kind, or better at no higher."
_SELECTOR_NOTE = (
    "Regret: points of test accuracy below the best block of the same data set, backbone, training size, method and "
    "seed. Brute force tunes every block and takes the best on the validation split. Argmin NC1 takes the smallest "
    "pre-trained NC1, Auto-RGN the largest relative gradient norm."
)
_DATA_NOTE = (
    "Numbers of images; where the seeds differ, the least and the most. An image is in two splits if its file is, byte "
    "by byte: what was tested was trained on, too. Of a class without a training image nothing was learned."
)
_WORST_NOTE = "Share of the test images of a class that are recognised, all seeds together; the three lowest."

_SPREAD_NOTE = (
    "Spread of the training images of a class in what the classifier sees, over the squared distance to the nearest "
    "other class: 0 at the collapse, infinite where its mean is that of another class. Mean over seeds of the best "
    "method of a setting, classes without training images left out; the three largest."
)
_CLOSE_NOTE = (
    "The pairs of classes with the largest class-distance normalised variance (CDNV) in what the classifier sees of "
    "training images, infinite where their means coincide, mean over seeds; confused: test images of either that were "
    "taken for the other, in per cent."
)
_CALIBRATED = (
    " Calibration error: how far the probability of the answer lies from the share of right answers on the test split, "
    "mean over 15 bins; tempered: at one temperature that validation images, folds or training images left out chose."
)


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
        kind: ``"main"`` for the answer over all groups, ``"overview"`` where the columns are groups, ``"group"`` for
            the table of one, else ``"analysis"``.
        note: How to read it.
    """

    title: str
    table: Table
    pictures: tuple[Picture, ...] = ()
    kind: Literal["main", "overview", "group", "analysis"] = "analysis"
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What a report says, before it is put into markdown or HTML; all of it plain text.

    Attributes:
        title: Heading of the report.
        summary: The outcome in words, point by point.
        notes: How to read the tables.
        sections: All groups beside each other where there are several, then group by group, then what follows.
        failures: The runs without a result, and the files that could not be read.
        provenance: Where the results come from.
        rows: The numbers that all of it is of, for pictures that a reader chooses.
    """

    title: str
    summary: tuple[str, ...]
    notes: str
    sections: tuple[Section, ...]
    failures: Table
    provenance: Table
    rows: tuple[Row, ...] = ()


_FOLDS = (
    " Of runs whose choice is by folds, learning rate, chosen key layer and number of epochs come of folds of the "
    "training images alone, on all of which they were then trained: that is all that they have seen of labels."
)


def _notes(finished: Sequence[Result]) -> str:
    """Explain the columns, with the convention by which NC1 was measured."""
    if not finished:
        return "No run finished, so there is nothing to tabulate."
    convention = finished[0].nc1_normalize
    measure = _MEASURES[finished[0].measure]
    return (
        f"{measure} Values are means over seeds, ± is their sample standard deviation (none for a "
        "single seed), the highest mean is in bold, compared on the seeds that two rows share; a mean with a "
        "\N{DAGGER} is over fewer runs than others of its setting, and seeds says what became of the rest. tuned %: "
        "parameters trained, the head's included. NC1 is "
        f"{_FORMULAS.get(convention, convention)} of what the classifier sees, on the training split; NC2 the "
        "distance of its class means from a simplex ETF; both are 0 at the collapse. "
        "Behind a learning rate, or the dash of a solved head, a \N{DOUBLE DAGGER} says that in some runs the rate, a "
        "rank, a penalty, a shrinkage or a number of neighbours was the lowest or the highest that was tried, so that "
        "a better one may lie beyond. s/epoch: mean time of one training pass. processor s and TFLOP: of whole runs, "
        "with everything that was chosen by. Peak memory: largest of the seeds. Delta size: what a file of the tuned "
        "part and the head takes."
    ) + "".join(
        words
        for words, said in (
            (_CALIBRATED, any(run.calibration_error is not None for run in finished)),
            (_FOLDS, any(run.choice.get("by") == "folds" for run in finished)),
        )
        if said
    )


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:80]


def _pictures(stem: str, figures: Mapping[str, Figure | None]) -> tuple[Picture, ...]:
    """Name the file of every figure that could be drawn."""
    return tuple(
        Picture(figure, f"figures/{stem}_{kind}.png") for kind, figure in figures.items() if figure is not None
    )


def _group_sections(rows: Sequence[Row], styles: Mapping[str, Style]) -> Iterator[Section]:
    """Describe group by group."""
    stems: collections.Counter[str] = collections.Counter()
    groups = by_group(rows)
    for place, (group, members) in enumerate(groups.items()):
        slug = _slug(group.label)
        stems[slug.lower()] += 1
        # Names that differ only in punctuation, or in case on some disks, must not overwrite each other's pictures.
        stem = slug if stems[slug.lower()] == 1 else f"{slug}_{stems[slug.lower()]}"
        figures: dict[str, Figure | None] = {}
        if place == 0 or len(groups) <= _MOST_GROUP_PICTURES:
            figures["layers"] = layerwise_nc1(members, styles)
        if len(groups) == 1:
            figures["accuracy"] = accuracy_against_nc1(members, styles)
            figures["cost"] = accuracy_against_cost(members, styles)
            figures["curves"] = learning_curves(members, styles)
        yield Section(group.label, group_table(members), _pictures(stem, figures), kind="group")


def _overview(rows: Sequence[Row], styles: Mapping[str, Style]) -> Iterator[Section]:
    """Put all groups beside each other, where there are several."""
    if len(by_group(rows)) < 2:
        return
    figures = {
        "accuracy": accuracy_against_nc1(rows, styles),
        "sizes": accuracy_against_size(rows, styles),
    }
    pictures = _pictures("overview", figures)
    yield Section(f"Overview: {measure_column(rows)} / NC1", overview_table(rows), pictures, kind="overview")


def _answers(rows: Sequence[Row]) -> Iterator[Section]:
    """Say which method did best over all groups, and how the recommended one did in each."""
    found = standings(rows)
    choice = recommended(found)
    leader = choice.standing if choice is not None else next(iter(found), None)
    if leader is not None and (compared := comparison_table(leader, found)).rows:
        note = _COMPARISON_NOTE.format(leader.label)
        yield Section(f"{leader.label} against each alternative", compared, kind="main", note=note)
    answers = (
        Section("Methods over all settings", standings_table(found, rows), kind="main", note=_STANDINGS_NOTE),
        Section("The recommended method", choice_table(found, rows), kind="main", note=_CHOICE_NOTE),
    )
    yield from (section for section in answers if section.table.rows)


def _analyses(rows: Sequence[Row], finished: Sequence[Result]) -> Iterator[Section]:
    """Say what follows from the numbers."""
    name = rows[0].group.measure.capitalize() if rows else ""
    found = (
        Section(f"{name} against NC1", correlation_table(finished), note=_CORRELATION_NOTE),
        Section(f"{name} against cost", pareto_table(rows), note=_PARETO_NOTE),
        Section("Choice of the key layer", selector_table(finished), note=_SELECTOR_NOTE),
        Section("Worst classes", worst_table(rows), note=_WORST_NOTE),
        Section("Classes that collapse least", spread_table(rows), note=_SPREAD_NOTE),
        Section("Closest classes", close_table(rows), note=_CLOSE_NOTE),
        Section("Data", data_table(finished), note=_DATA_NOTE),
        Section("Notes on the data", notes_table(finished)),
    )
    yield from (section for section in found if section.table.rows)


def _failures(results: Sequence[Result], problems: Sequence[str]) -> Table:
    """List the runs without a result, and what was left out or could not be told of files."""
    lost = [run for run in results if run.status != "ok"]
    rows = [(run.run_id, run.status, run.error or NOTHING) for run in lost]
    unread = [(NOTHING, "note", problem) for problem in problems]
    return Table.of_texts(("run", "status", "error"), [*rows, *unread])


def _commit_text(provenance: Mapping[str, Any]) -> str:
    return f"{provenance['git_commit']}{' with uncommitted changes' if provenance.get('git_dirty') else ''}"


def _facts(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Spell out one provenance; packages and other nested facts get a line each, unknown facts none."""
    for key, value in provenance.items():
        name = key.replace("_", " ")
        if isinstance(value, Mapping):
            prefix = "" if key == "versions" else f"{name}: "
            yield from ((f"{prefix}{inner}", str(fact)) for inner, fact in value.items() if fact is not None)
        elif value is not None and key not in _NO_FACTS:
            yield name, _commit_text(provenance) if key == "git_commit" else str(value)


def _provenance(results: Sequence[Result]) -> Table:
    """Collect the distinct values of every fact; a dict keeps them in order."""
    values: dict[str, dict[str, None]] = {}
    for run in results:
        for name, value in _facts(run.provenance):
            values.setdefault(name, {})[value] = None
    return Table.of_texts(("what", "value"), ((name, ", ".join(distinct)) for name, distinct in values.items()))


def build_report(results: Sequence[Result], problems: Sequence[str] = ()) -> Report:
    """Collect everything that a report says.

    Args:
        results: Runs of a benchmark.
        problems: What was left out or could not be told, a sentence each.

    Returns:
        The content, without markup.

    Raises:
        ValueError: If there are no results, runs are judged by different measures, NC1 was measured by different
            conventions, or a row holds a seed twice.
        ImportError: If a package of the extra ``report`` is not installed.
    """
    check_report_extra()
    if not results:
        raise ValueError("a report needs at least one result, none was given: run the benchmark first")
    finished, rows = finished_runs(results), summarize(results)
    if len({run.measure for run in finished}) > 1:
        raise ValueError("accuracy and average precision do not go into one report: give the runs of one of them")
    styles = palette(row_labels(rows))
    groups = (*_overview(rows, styles), *_group_sections(rows, styles))
    return Report(
        title=_TITLE,
        summary=outcome(results, rows),
        notes=_notes(finished),
        sections=(*_answers(rows), *groups, *_analyses(rows, finished)),
        failures=_failures(results, problems),
        provenance=_provenance(results),
        rows=tuple(rows),
    )
