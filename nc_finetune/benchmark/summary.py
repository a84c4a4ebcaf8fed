"""Mean and spread over seeds of the runs that finished."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nc_finetune.benchmark.results import Result
from nc_finetune.methods import (
    AdapterTuning,
    BiasTuning,
    FinetuningMethod,
    FullFinetuning,
    LayerFinetuning,
    LinearProbe,
    NormTuning,
    ProbeFirst,
    SkipConnectionFinetuning,
    SkipProbe,
    ZeroShot,
)

# The order of the methods in every table and legend: from least to most that is tuned.
_METHODS: tuple[type[FinetuningMethod], ...] = (
    ZeroShot,
    LinearProbe,
    SkipProbe,
    BiasTuning,
    NormTuning,
    AdapterTuning,
    LayerFinetuning,
    SkipConnectionFinetuning,
    ProbeFirst,
    FullFinetuning,
)
METHOD_LABELS = {method.name: method.label for method in _METHODS}
_ABSENT = {"key_layer": "no key layer", "options": "default options"}
_NC2 = "nc2_etf_distance"
_DETAILS = ("key_layer", "head", "loss", "options")


@dataclass(frozen=True, kw_only=True)
class Group:
    """What runs must share for their accuracies to be compared.

    Attributes:
        dataset: Name of the data set.
        backbone: Name of the architecture.
        weights: The weights that the runs started from; ``None`` is random initialisation.
        samples_per_class: Training images a class; ``None`` is the whole training split, or a share of it.
        train_share: Share of the training split; ``None`` is all of it, or a number a class.
    """

    dataset: str
    backbone: str
    weights: str | None
    samples_per_class: int | None
    train_share: float | None = None

    @property
    def label(self) -> str:
        """The group in words.

        Example:
            >>> Group(dataset="digits", backbone="resnet18", weights=None, samples_per_class=10).label
            'digits · resnet18 (random initialisation) · 10 images a class'
        """
        return f"{self.dataset} · {self.network} · {self.size}"

    @property
    def network(self) -> str:
        """Backbone and weights in words."""
        return f"{self.backbone} ({self.weights or 'random initialisation'})"

    @property
    def size(self) -> str:
        """The training size in words."""
        if self.samples_per_class is not None:
            return f"{self.samples_per_class} images a class"
        return "whole training split" if self.train_share is None else f"{100 * self.train_share:g} % of training split"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a run fine-tuned: its method, and the choices within the method.

    Attributes:
        method: Name of the fine-tuning method.
        key_layer: The tuned block, where the method has one.
        head: Class of the classifier.
        loss: Class of the training loss.
        options: Further choices, as ``"scale=0.5"``; empty for the defaults.
    """

    method: str
    key_layer: str | None
    head: str
    loss: str
    options: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant in one group, over its seeds. A value that no run has is ``None``.

    Attributes:
        group: Data set, backbone, weights and training size.
        variant: Method, key layer, head and loss.
        seeds: How many runs there were, one a seed.
        accuracy: Mean test accuracy in per cent.
        accuracy_sd: Its sample standard deviation; ``None`` for one seed.
        nc1: Mean NC1 of what the classifier sees.
        nc1_sd: Its sample standard deviation; ``None`` for one seed.
        nc2: Mean NC2, the distance of the class means from a simplex ETF.
        nc2_sd: Its sample standard deviation; ``None`` for one seed.
        tuned_percent: Parameters tuned, in per cent of all.
        learning_rates: The rates that were chosen, each once, in increasing order.
        epoch_seconds: Mean time of one training pass.
        peak_memory_bytes: The largest peak memory.
        delta_bytes: Mean size of what was tuned.
        train_size: Mean number of training images.
    """

    group: Group
    variant: Variant
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
    train_size: float | None = None


def method_label(name: str) -> str:
    """Name a method as the papers do.

    Args:
        name: Name of the fine-tuning method.

    Returns:
        The display name; an unknown name verbatim.

    Example:
        >>> method_label("scl_ft"), method_label("prompts")
        ('SCL-FT', 'prompts')
    """
    return METHOD_LABELS.get(name, name)


def group_of(run: Result) -> Group:
    """Say which group a run belongs to.

    Args:
        run: Any run.

    Returns:
        Its group.
    """
    return Group(
        dataset=run.dataset,
        backbone=run.backbone,
        weights=run.weights,
        samples_per_class=run.samples_per_class,
        train_share=run.train_share,
    )


def _words(value: Any) -> str:
    """Write a method or a head within another one, ``{"head": name, "options": ...}``, as its call."""
    if not (isinstance(value, dict) and value.keys() in ({"head", "options"}, {"method", "options"})):
        return str(value)
    options = value["options"]
    (name,) = (inner for key, inner in value.items() if key != "options")
    return f"{name}({', '.join(f'{key}={_words(inner)}' for key, inner in options.items())})"


def variant_of(run: Result) -> Variant:
    """Say which variant a run is of.

    Args:
        run: Any run.

    Returns:
        Its variant.
    """
    options = ", ".join(f"{name}={_words(value)}" for name, value in sorted(run.options.items()))
    # Seeds may choose different blocks; what they have in common is how they chose.
    layer = "auto" if run.selection else run.key_layer
    return Variant(method=run.method, key_layer=layer, head=run.head, loss=run.loss, options=options)


def _group_order(group: Group) -> tuple[object, ...]:
    """Sort by data set, backbone, weights and training size, the whole split last."""
    size = math.inf if group.samples_per_class is None else group.samples_per_class
    return group.dataset, group.backbone, group.weights or "", size, group.train_share or 1.0


def _natural(name: str | None) -> list[tuple[int, str]]:
    """Sort ``blocks.9`` before ``blocks.10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name or "")]


def _variant_order(variant: Variant) -> tuple[object, ...]:
    """Sort the known methods by what they tune, all others behind them by name."""
    methods = list(METHOD_LABELS)
    rank = methods.index(variant.method) if variant.method in methods else len(methods)
    return rank, variant.method, _natural(variant.key_layer), variant.head, variant.loss, variant.options


def finite(values: Iterable[float | None]) -> list[float]:
    """Leave out what was not measured or is not a number.

    Args:
        values: Measurements.

    Returns:
        The finite ones, in order.

    Example:
        >>> finite([1.0, None, float("nan"), 2.0])
        [1.0, 2.0]
    """
    return [value for value in values if value is not None and math.isfinite(value)]


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


def _row(group: Group, variant: Variant, runs: Sequence[Result]) -> Row:
    """Average the runs of one cell."""
    _refuse_repeated_seeds(runs)
    accuracy, nc1 = finite(run.accuracy for run in runs), finite(run.nc1 for run in runs)
    nc2 = finite(run.collapse.get(_NC2) for run in runs)
    peaks = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    return Row(
        group=group,
        variant=variant,
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
        train_size=_mean(finite(run.train_size for run in runs)),
    )


def finished_runs(results: Iterable[Result]) -> list[Result]:
    """Keep the runs whose numbers may be shown, in the order of the tables.

    Args:
        results: Runs, whatever became of them.

    Returns:
        The runs with status ok, sorted by group, variant and seed.

    Raises:
        ValueError: If they measured NC1 by different conventions.
    """
    finished = [run for run in results if run.status == "ok"]
    _refuse_mixed_conventions(finished)
    return sorted(finished, key=lambda run: (_group_order(group_of(run)), _variant_order(variant_of(run)), run.seed))


def summarize(results: Iterable[Result]) -> list[Row]:
    """Average the finished runs over seeds.

    Args:
        results: Runs; those that failed or diverged are left out.

    Returns:
        One row per group and variant: sorted by data set, backbone, weights, training size, then by method.

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
        ...     )
        ...     for seed in range(3)
        ... ]
        >>> [(row.accuracy, row.accuracy_sd) for row in summarize(runs)]
        [(92.0, 2.0)]
    """
    cells: dict[tuple[Group, Variant], list[Result]] = {}
    for run in finished_runs(results):
        cells.setdefault((group_of(run), variant_of(run)), []).append(run)
    return [_row(group, variant, runs) for (group, variant), runs in cells.items()]


def _differing(variants: Iterable[Variant]) -> set[str]:
    """Name the choices in which variants differ."""
    variants = list(variants)
    return {name for name in _DETAILS if len({getattr(variant, name) for variant in variants}) > 1}


def variant_labels(results: Iterable[Result]) -> dict[Variant, str]:
    """Name every variant: by its method alone, where no group holds two variants of the method.

    Args:
        results: Runs.

    Returns:
        Display name by variant, in the order of the tables. Within a group no two variants have the same name.
    """
    siblings: dict[tuple[Group, str], set[Variant]] = {}
    for run in results:
        siblings.setdefault((group_of(run), run.method), set()).add(variant_of(run))
    shown: dict[str, set[str]] = {}
    for (_, method), variants in siblings.items():
        shown.setdefault(method, set()).update(_differing(variants))
    labels = {}
    for variant in sorted(set().union(*siblings.values()), key=_variant_order):
        details = [getattr(variant, name) or _ABSENT[name] for name in _DETAILS if name in shown[variant.method]]
        labels[variant] = " · ".join([method_label(variant.method), *details])
    return labels


def by_group(rows: Iterable[Row]) -> dict[Group, list[Row]]:
    """Gather rows by group.

    Args:
        rows: Rows of any order.

    Returns:
        The rows of each group, order kept.
    """
    groups: dict[Group, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def best_rows(rows: Sequence[Row]) -> list[Row]:
    """Find the highest mean accuracy.

    Args:
        rows: The rows of one group.

    Returns:
        The best row, or several where the means are equal; empty if nothing has an accuracy.
    """
    highest = max(finite(row.accuracy for row in rows), default=None)
    return [row for row in rows if row.accuracy is not None and row.accuracy == highest]
