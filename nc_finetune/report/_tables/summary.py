"""Mean and spread over seeds of the runs that finished."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nc_finetune.report._tables.groups import Group, finite, group_of, group_order, grouped
from nc_finetune.report._tables.labels import variant_labels
from nc_finetune.report._tables.score import balanced_accuracy, has_uneven_classes
from nc_finetune.report._tables.variants import Variant, variant_of, variant_order
from nc_finetune.results.identity import place_of, told_apart
from nc_finetune.results.result import Result

_UNMEASURED = "without a test result"
_NC2 = "nc2_etf_distance"
_RowKey = tuple[Group, Variant]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant in one group, over its seeds. A value that no run has is ``None``.

    Attributes:
        group: Data set, backbone, weights and training size.
        variant: Method, key layer, head and loss.
        label: Display name of the variant.
        seeds: How many runs finished, one a seed.
        accuracy: Mean test accuracy in per cent, or what else the group is measured by.
        accuracy_sd: Its sample standard deviation; ``None`` for one seed.
        nc1: Mean NC1 of what the classifier sees.
        nc1_sd: Its sample standard deviation; ``None`` for one seed.
        nc2: Mean NC2, the distance of the class means from a simplex ETF.
        nc2_sd: Its sample standard deviation; ``None`` for one seed.
        tuned_percent: Parameters tuned, in per cent of all.
        learning_rates: The rates that were chosen, each once, in increasing order.
        at_edge: How many runs chose the lowest or the highest of the values that were tried, by what it is a value of.
        all_epochs: How many runs chose all the epochs that there were.
        epoch_seconds: Mean time of one training pass.
        processor_seconds: Mean time of the processors for a whole run, with everything that was chosen by.
        teraflop: Mean arithmetic of a whole run in 10^12 operations, of those that counted it.
        peak_memory_bytes: The largest peak memory.
        delta_bytes: Mean size of what was tuned.
        calibration_error: Mean expected calibration error in per cent.
        tempered_calibration_error: The same at the temperature that other images than the test split chose.
        train_size: Mean number of training images.
        balanced_accuracy: Mean recall over classes, in per cent, mean over seeds.
        uneven: Whether the test classes differ so much in size that accuracy tells too little.
        accuracies: Accuracy by seed.
        runs: Those that finished, by seed.
        lost: How many further seeds came to no result, by what became of them: ``"diverged"``, ``"failed"``, or
            ``"without a test result"``, which finished all the same.
        missing: How many seeds that another row of the group has a result of this one was not begun with.
    """

    group: Group
    variant: Variant
    label: str
    seeds: int
    accuracy: float | None
    accuracy_sd: float | None
    nc1: float | None
    nc1_sd: float | None
    nc2: float | None
    nc2_sd: float | None
    tuned_percent: float | None
    learning_rates: tuple[float, ...]
    epoch_seconds: float | None
    peak_memory_bytes: int | None
    delta_bytes: float | None = None
    calibration_error: float | None = None
    tempered_calibration_error: float | None = None
    train_size: float | None = None
    balanced_accuracy: float | None = None
    uneven: bool = False
    accuracies: Mapping[int, float] = field(default_factory=dict)
    runs: tuple[Result, ...] = ()
    lost: Mapping[str, int] = field(default_factory=dict)
    at_edge: Mapping[str, int] = field(default_factory=dict)
    all_epochs: int = 0
    processor_seconds: float | None = None
    teraflop: float | None = None
    missing: int = 0

    @property
    def samples(self) -> dict[int, str | None]:
        """Hash of the images that were drawn, by seed; ``None`` where it was not recorded."""
        return {run.seed: run.provenance.get("splits_hash") for run in self.runs}

    @property
    def planned(self) -> int:
        """How many runs were begun, whatever became of them."""
        return self.seeds + sum(self.lost.values()) - self.lost.get(_UNMEASURED, 0)

    @property
    def lost_words(self) -> str:
        """What became of the runs without a result, e.g. ``"2 of 3 diverged"``; empty where all have one."""
        return ", ".join(f"{number} of {self.planned} {fate}" for fate, number in self.lost.items())

    @property
    def missing_words(self) -> str:
        """How many seeds others of the group have and this row has not, e.g. ``"4 of 5 seeds not run"``."""
        return f"{self.missing} of {self.planned + self.missing} seeds not run" if self.missing else ""


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _sd(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _refuse_mixed_conventions(runs: Sequence[Result]) -> None:
    """NC1 values of different conventions differ by a factor of K: no axis could hold both."""
    conventions = sorted({run.nc1_normalize for run in runs})
    if len(conventions) > 1:
        raise ValueError(
            "runs with different nc1_normalize conventions cannot be drawn in one picture; there are runs with "
            f"{', '.join(map(repr, conventions))}: keep them in separate folders, or run all with the same convention"
        )


def _refuse_repeated_seeds(runs: Sequence[Result]) -> None:
    """A seed that counts twice would make the spread over seeds too small."""
    by_seed: dict[int, str] = {}
    for run in runs:
        if run.seed in by_seed:
            raise ValueError(
                f"a row must hold one run a seed; runs {by_seed[run.seed]!r} and {run.run_id!r} share seed {run.seed} "
                "and differ in nothing that the table shows: report them from separate folders"
            )
        by_seed[run.seed] = run.run_id


def _row(key: _RowKey, label: str, runs: Sequence[Result], lost: Sequence[Result], missing: int) -> Row:
    """Average the runs of one cell that finished, and count those that did not."""
    _refuse_repeated_seeds(runs)
    scores = {run.seed: run.score for run in runs}
    accuracies = {seed: value for seed, value in scores.items() if value is not None and math.isfinite(value)}
    accuracy, nc1 = list(accuracies.values()), finite(run.nc1 for run in runs)
    nc2 = finite(run.collapse.get(_NC2) for run in runs)
    peaks = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    fates = Counter({run.seed: str(run.status) for run in lost}.values())
    if accuracies and len(accuracies) < len(runs):
        fates[_UNMEASURED] = len(runs) - len(accuracies)
    return Row(
        group=key[0],
        variant=key[1],
        label=label,
        seeds=len(runs),
        accuracy=_mean(accuracy),
        accuracy_sd=_sd(accuracy),
        nc1=_mean(nc1),
        nc1_sd=_sd(nc1),
        nc2=_mean(nc2),
        nc2_sd=_sd(nc2),
        tuned_percent=_mean(finite(run.tuned_percent for run in runs)),
        learning_rates=tuple(sorted(set(finite(run.learning_rate for run in runs)))),
        epoch_seconds=_mean(finite(run.epoch_seconds for run in runs)),
        peak_memory_bytes=max(peaks, default=None),
        delta_bytes=_mean(finite(run.delta_bytes for run in runs)),
        calibration_error=_mean(finite(run.calibration_error for run in runs)),
        tempered_calibration_error=_mean(finite(run.tempered_calibration_error for run in runs)),
        train_size=_mean(finite(run.train_size for run in runs)),
        balanced_accuracy=_mean(finite(map(balanced_accuracy, runs))),
        uneven=any(map(has_uneven_classes, runs)),
        accuracies=accuracies,
        runs=tuple(runs),
        lost=dict(fates),
        at_edge=dict(Counter(name for run in runs for name in run.edges)),
        all_epochs=sum(run.took_all_epochs for run in runs),
        processor_seconds=_mean(finite(run.processor_seconds for run in runs)),
        teraflop=_mean(finite(run.flops / 1e12 for run in runs if run.flops)),
        missing=missing,
    )


def finished_runs(results: Iterable[Result]) -> list[Result]:
    """Keep the runs whose numbers may be shown, in the order of the tables.

    Returns:
        The runs with status ok, sorted by group, variant and seed; data sets and weights of one name that are not the
        same are told apart by :func:`~nc_finetune.results.identity.told_apart`.

    Raises:
        ValueError: If they measured NC1 by different conventions.
    """
    finished = [run for run in told_apart(list(results)) if run.status == "ok"]
    _refuse_mixed_conventions(finished)
    return sorted(finished, key=lambda run: (group_order(group_of(run)), variant_order(variant_of(run)), run.seed))


def _cell_of(run: Result) -> _RowKey:
    return group_of(run), variant_of(run)


def _cell_of_lost(run: Result, cells: Mapping[_RowKey, Sequence[Result]]) -> _RowKey | None:
    """Say which cell a run without a result belongs to: one of those that have any, or its own beside them.

    Such a run may not know its measure, and one that failed before it was built neither its head nor its key layer.
    Then it belongs to the one cell of its method and options that lacks its seed; ``None`` where there are several.
    """
    group, variant = _cell_of(run)
    group = next((known for known, _ in cells if replace(known, measure=group.measure) == group), group)
    lacking = [
        (known, other)
        for (known, other), members in cells.items()
        if (known, other.method, other.options, other.settings)
        == (group, variant.method, variant.options, variant.settings)
        and run.seed not in {member.seed for member in members}
    ]
    own = group, variant
    if own not in lacking and len(lacking) == 1:
        return lacking[0]
    return own if own in lacking or own not in cells else None


def _order(cell: _RowKey) -> tuple[object, ...]:
    return group_order(cell[0]), variant_order(cell[1])


def _cells(results: Sequence[Result]) -> dict[_RowKey, tuple[list[Result], list[Result]]]:
    """Gather runs by cell, in the order of the tables: those that finished, and those that did not."""
    results = told_apart(results)
    finished = grouped(finished_runs(results), _cell_of)
    if not finished:
        return {}
    lost: dict[_RowKey, list[Result]] = {}
    for run in results:
        if run.status != "ok" and (cell := _cell_of_lost(run, finished)) is not None:
            lost.setdefault(cell, []).append(run)
    return {cell: (finished.get(cell, []), lost.get(cell, [])) for cell in sorted({**finished, **lost}, key=_order)}


def summarize(results: Iterable[Result]) -> list[Row]:
    """Average the finished runs over seeds, and count the others.

    Args:
        results: Runs; of those that failed or diverged no number counts, but their row says how many they are.

    Returns:
        One row per group and variant: sorted by data set, backbone, weights, training size, then by method. None at
        all where no run finished.

    Raises:
        ValueError: If the runs measured NC1 by different conventions, or a row would hold a seed twice.

    Example:
        >>> runs = [
        ...     Result(
        ...         run_id=f"run{seed}",
        ...         backbone="resnet18",
        ...         weights=None,
        ...         dataset="digits",
        ...         method="full_ft",
        ...         seed=seed,
        ...         accuracy=90.0 + 2 * seed,
        ...         status="diverged" if seed == 3 else "ok",
        ...     )
        ...     for seed in range(4)
        ... ]
        >>> [(row.accuracy, row.accuracy_sd, row.lost_words) for row in summarize(runs)]
        [(92.0, 2.0, '1 of 4 diverged')]
    """
    cells = _cells(list(results))
    labels = variant_labels(run for finished, lost in cells.values() for run in finished or lost)
    seeds: dict[Group, set[int]] = {}
    for (group, _), (finished, _) in cells.items():
        seeds.setdefault(group, set()).update(run.seed for run in finished)
    return [
        _row(key, labels[key[1]], finished, lost, len(seeds[key[0]] - {run.seed for run in (*finished, *lost)}))
        for key, (finished, lost) in cells.items()
    ]


def row_labels(rows: Iterable[Row]) -> dict[Variant, str]:
    """Return the display name of every variant, in the order of the legends."""
    return {row.variant: row.label for row in sorted(rows, key=lambda row: variant_order(row.variant))}


def by_group(rows: Iterable[Row]) -> dict[Group, list[Row]]:
    """Gather rows by group."""
    return grouped(rows, lambda row: row.group)


def _place_but_image_size(run: Result) -> tuple[object, ...]:
    place = {path: value for path, value in place_of(run).items() if path != "dataset.image_size"}
    return run.dataset, run.samples_per_class, run.train_share, tuple(sorted(place.items()))


def best_by_network(results: Iterable[Result]) -> dict[tuple[str, str | None], float]:
    """Find how accurate fine-tuning made each backbone: its best variant, each the mean over its seeds.

    Args:
        results: Runs on one data set at one training size; those that did not finish are left out.

    Returns:
        Test accuracy in per cent by backbone and weights.

    Raises:
        ValueError: If the runs are of several data sets, contents, splits or training sizes. Other image sizes count
            as variants, of which each backbone has its best.

    Example:
        >>> runs = [
        ...     Result(run_id=f"{seed}", backbone="b", weights=None, dataset="d", method="m", seed=seed, accuracy=80.0)
        ...     for seed in range(2)
        ... ]
        >>> best_by_network(runs)
        {('b', None): 80.0}
    """
    runs = [run for run in results if run.status == "ok" and run.accuracy is not None]
    rows = summarize(runs)
    if len({_place_but_image_size(run) for run in runs}) > 1:
        places = sorted({f"{row.group.dataset}, {row.group.size}" for row in rows})
        raise ValueError(
            f"results to compare backbones by must be of one data set and training size, got {'; '.join(places)}"
        )
    best: dict[tuple[str, str | None], float] = {}
    for row in rows:
        network = (row.group.backbone, row.group.weights)
        best[network] = max(best.get(network, 0.0), row.accuracy or 0.0)
    return best
