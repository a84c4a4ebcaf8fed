"""How scores of frozen networks go with the accuracies that the networks come to, as a page."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import norm, spearmanr

from benchmarks.pretraining.networks import Pretraining
from benchmarks.pretraining.scores import NCTI_PARTS, SCORES, with_ncti
from nc_finetune.report._tables.variants import METHOD_LABELS, method_label
from nc_finetune.results.result import Result

# Accuracies by network, data set and method; scores by network, data set and name.
Accuracies = dict[tuple[str, str, str], float]
Scores = dict[tuple[str, str, str], float]
_FEWEST = 5  # networks, for a rank correlation
NC1, PARAMETERS = "NC1", "number of parameters"
PICTURE_CAPTION = "Test accuracy against NC1 of the frozen feature, a point for each network"


@dataclass(frozen=True)
class Measured:
    """What is known of all networks.

    Attributes:
        networks: In the order of the settings.
        facts: Of each, as :func:`~benchmarks.pretraining.networks.pretrain` returns them.
        accuracies: Mean over samples, in per cent.
        scores: Mean over samples, higher being better.
        source: Name of the data set that they were pre-trained on; what they come to there is a score itself.
    """

    networks: Sequence[Pretraining]
    facts: Mapping[str, Mapping[str, Any]]
    accuracies: Accuracies
    scores: Scores
    source: str

    @property
    def tasks(self) -> list[str]:
        """The data sets, without that of the pre-training."""
        return [task for task in dict.fromkeys(key[1] for key in self.accuracies) if task != self.source]

    @property
    def score_names(self) -> list[str]:
        """What might order networks: the scores, what a probe comes to at home, and the number of parameters."""
        return [*dict.fromkeys(key[2] for key in self.scores), f"probe on {self.source}", PARAMETERS]

    def value(self, network: str, task: str, score: str) -> float:
        """Return a score of a network on a task, higher being better."""
        if score == f"probe on {self.source}":
            return self.accuracies.get((network, self.source, "linear_probe"), math.nan)
        if score == PARAMETERS:
            return float(next(one.parameters for one in self.networks if one.name == network))
        return self.scores.get((network, task, score), math.nan)

    @property
    def methods(self) -> list[str]:
        """The methods, from least to most that is tuned."""
        return sorted({key[2] for key in self.accuracies}, key=[*METHOD_LABELS].index)


def accuracies_of(results: Sequence[Result]) -> Accuracies:
    """Average test accuracies over samples.

    Args:
        results: Of the grid, with names of networks in place of weights; runs that failed are left out.
    """
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for run in results:
        if run.status == "ok" and run.accuracy is not None:
            found[str(run.weights), run.dataset, run.method].append(run.accuracy)
    return {key: statistics.fmean(values) for key, values in found.items()}


def scores_of(found: Mapping[tuple[str, str, int], Mapping[str, float]], results: Sequence[Result]) -> Scores:
    """Turn scores so that higher is better, add NCTI, leave-one-out of the readout, and average over samples.

    Args:
        found: Scores by network, data set and sample.
        results: Of the grid, likewise; readouts know their leave-one-out accuracy.
    """
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    places: dict[tuple[str, int], list[str]] = defaultdict(list)
    for (network, task, seed), given in found.items():
        places[task, seed].append(network)
        for name, sign in SCORES.items():
            values[network, task, name].append(sign * given[name])
    for (task, seed), networks in places.items():
        parts = [{part: found[network, task, seed][part] for part in NCTI_PARTS} for network in networks]
        for network, value in zip(networks, with_ncti(parts), strict=True):
            values[network, task, "NCTI"].append(value)
    for run in results:
        if run.status == "ok" and "leave_one_out_accuracy" in run.readout:
            key = (str(run.weights), run.dataset, "leave-one-out of the readout")
            values[key].append(run.readout["leave_one_out_accuracy"])
    return {key: statistics.fmean(numbers) for key, numbers in values.items()}


def correlation(first: Sequence[float], second: Sequence[float], alternatives: int = 1) -> tuple[float, float, float]:
    """Return Spearman's rank correlation with a 95 % interval.

    Args:
        first: A number a network.
        second: Likewise.
        alternatives: How many intervals are to hold together (Bonferroni).

    Returns:
        The correlation and the ends; three ``nan`` where there are fewer than five networks, or all are level.

    Source:
        Bonett & Wright 2000, Sample size requirements for estimating Pearson, Kendall and Spearman correlations,
        10.1007/BF02294183: Fisher's z with variance ``(1 + r^2/2) / (n - 3)``.

    Example:
        >>> [round(value, 2) for value in correlation([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 6, 5])]
        [0.94, 0.38, 1.0]
    """
    known = [(a, b) for a, b in zip(first, second, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if len(known) < _FEWEST or any(len(set(column)) == 1 for column in zip(*known, strict=True)):
        return math.nan, math.nan, math.nan
    rank = float(spearmanr(*zip(*known, strict=True)).statistic)
    if abs(rank) == 1:
        return rank, rank, rank
    half = float(norm.ppf(1 - 0.025 / alternatives)) * math.sqrt((1 + rank**2 / 2) / (len(known) - 3))
    low, high = (math.tanh(math.atanh(rank) + sign * half) for sign in (-1, 1))
    return rank, low, high


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([_line(head), _line(["---"] * len(head)), *map(_line, rows)])


def _number(value: float | None, digits: int = 1) -> str:
    return "\N{EN DASH}" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _networks_table(measured: Measured) -> str:
    rows, tasks = [], (measured.source, *measured.tasks)
    for network in measured.networks:
        known = measured.facts[network.name]
        at_home = measured.accuracies.get((network.name, measured.source, "linear_probe"))
        nc1 = [-measured.scores.get((network.name, task, "NC1"), math.nan) for task in tasks]
        cells = [network.name, f"`{known['hash'][:12]}`", _number(known["seconds"] / 60), _number(at_home)]
        rows.append([*cells, *(_number(value, 2) for value in nc1)])
    head = ["network", "weights", "minutes", f"probe on {measured.source} %", *(f"NC1, {task}" for task in tasks)]
    return _table(head, rows)


def _accuracy_table(measured: Measured, method: str) -> str:
    rows = [
        [network.name, *(_number(measured.accuracies.get((network.name, task, method))) for task in measured.tasks)]
        for network in measured.networks
    ]
    return _table([method_label(method), *measured.tasks], rows)


Ranks = dict[str, dict[str, list[tuple[float, float, float]]]]


def correlations_of(measured: Measured) -> Ranks:
    """Correlate every score with the accuracy of every method over the networks: by method and score, of each task."""
    names = [network.name for network in measured.networks]
    found: Ranks = {}
    for method in measured.methods:
        found[method] = {}
        for score in measured.score_names:
            found[method][score] = [
                correlation(
                    [measured.value(name, task, score) for name in names],
                    [measured.accuracies.get((name, task, method), math.nan) for name in names],
                    len(measured.score_names),
                )
                for task in measured.tasks
            ]
    return found


def _mean_rank(ranks: Sequence[tuple[float, float, float]]) -> float:
    known = [rank for rank, _, _ in ranks if math.isfinite(rank)]
    return statistics.fmean(known) if known else math.nan


def _correlation_table(measured: Measured, method: str, found: Ranks) -> str:
    rows = []
    for score, ranks in found[method].items():
        texts = [f"{_number(rank, 2)} ({_number(low, 2)} to {_number(high, 2)})" for rank, low, high in ranks]
        rows.append([score, *texts, _number(_mean_rank(ranks), 2)])
    return _table([f"accuracy of {method_label(method)}: score", *measured.tasks, "mean"], rows)


def _outcome(measured: Measured, found: Ranks) -> str:
    """Say which score orders networks best, and what NC1 comes to beside it."""
    said = []
    for method, by_score in found.items():
        means = {score: _mean_rank(ranks) for score, ranks in by_score.items()}
        order = sorted((score for score in means if math.isfinite(means[score])), key=lambda score: -means[score])
        if NC1 not in order:
            continue
        clear = sum(low > 0 for _, low, _ in by_score[NC1])
        against = sum(high < 0 for _, _, high in by_score[NC1])
        best = "" if order[0] == NC1 else f" (best: {order[0]}, {_number(means[order[0]], 2)})"
        said.append(
            f"- {method_label(method)}: NC1 orders networks with a mean Spearman of {_number(means[NC1], 2)}, place"
            f" {order.index(NC1) + 1} of {len(order)}{best}; clearly so on {clear} of {len(measured.tasks)} tasks,"
            f" clearly the other way on {against}."
        )
    return "\n".join(said) or f"Fewer than {_FEWEST} networks: nothing can be said yet."


def page(measured: Measured, about: str, picture: str) -> str:
    """Write the page.

    Args:
        measured: What it tells.
        about: Data, versions and commit, a paragraph.
        picture: File of the picture, as the page finds it.
    """
    found = correlations_of(measured)
    parts = [
        "# More collapse, better transfer?",
        about,
        _outcome(measured, found),
        "## Networks",
        "NC1 is that of the frozen penultimate feature on the training images of a sample, mean over samples.",
        _networks_table(measured),
        "## What orders them",
        "Spearman's rank correlation of each score, turned so that higher is better (a low NC1 is a high score), with"
        " test accuracy over the networks; intervals hold for all scores of a column together (95 %, Bonferroni).",
        *(_correlation_table(measured, method, found) for method in measured.methods),
        f"![{PICTURE_CAPTION}]({picture})",
        f"{PICTURE_CAPTION}.",
        "## Test accuracy %",
        *(_accuracy_table(measured, method) for method in measured.methods),
    ]
    return "\n\n".join(parts) + "\n"
