import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from nc_finetune.report._tables.analysis import (
    correlation_table,
    pareto_front,
    pareto_table,
    rank_correlation,
    wins,
    worst_classes,
)
from nc_finetune.report._tables.summary import summarize
from nc_finetune.report._tables.tables import NOTHING
from nc_finetune.results.result import Result


def make_run(**changes: Any) -> Result:
    fields = {"backbone": "resnet18", "weights": "imagenet", "dataset": "digits", "method": "full_ft", **changes}
    return Result(run_id="-".join(map(str, fields.values())), **fields)


@pytest.mark.parametrize("seed", range(3))
def test_rank_correlation_is_that_of_scipy_with_ties(seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 8, (2, 30)).astype(float)
    found = rank_correlation(values[0].tolist(), values[1].tolist())
    assert found.value == pytest.approx(stats.spearmanr(*values).statistic, abs=1e-6)


def test_interval_of_the_rank_correlation_covers_the_truth_19_times_of_20() -> None:
    chance = np.random.default_rng(0)
    truth, covered = 6 / math.pi * math.asin(0.7 / 2), 0
    for _ in range(400):
        pairs = chance.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], 40)
        found = rank_correlation(pairs[:, 0].tolist(), pairs[:, 1].tolist())
        assert found.low is not None
        assert found.high is not None
        covered += found.low < truth < found.high
    assert 0.92 < covered / 400 < 0.98


@pytest.mark.parametrize("number", [0, 1, 4])
def test_few_runs_have_no_correlation_and_say_how_many_are_needed(number: int) -> None:
    found = rank_correlation(range(number), range(number))
    assert (found.value, found.low, found.number) == (None, None, number)
    assert found.no_interval.endswith("too few, at least 5 are needed")


@pytest.mark.parametrize("sides", [([1.0] * 12, range(12)), (range(12), [1.0] * 12), ([math.nan] * 12, range(12))])
def test_values_without_an_order_have_no_correlation(sides: tuple[Sequence[float], Sequence[float]]) -> None:
    found = rank_correlation(*sides)
    assert (found.value, found.low) == (None, None)
    assert found.no_interval


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("number", "why"), [(5, "at least 10"), (9, "at least 10"), (10, "perfect"), (50, "perfect")])
def test_a_perfect_order_has_no_interval_without_width(number: int, why: str, sign: int) -> None:
    found = rank_correlation(range(number), [sign * value for value in range(number)])
    assert found.value == pytest.approx(sign)
    assert (found.low, found.high) == (None, None)
    assert why in found.no_interval


def test_pairs_that_are_not_finite_do_not_count() -> None:
    values = np.random.default_rng(0).normal(size=(2, 14))
    values[0, 3], values[1, 5] = math.inf, math.nan
    kept = values[:, np.isfinite(values).all(axis=0)]
    found = rank_correlation(values[0].tolist(), values[1].tolist())
    assert (found.number, found.value) == (12, pytest.approx(stats.spearmanr(*kept).statistic))


def test_correlations_are_over_everything_then_over_data_sets_and_groups() -> None:
    runs = [
        make_run(dataset=dataset, seed=seed, accuracy=50.0 + seed, nc1=9.0 - seed)
        for dataset, seed in itertools.product("ab", range(6))
    ]
    rows = [[cell.text for cell in row] for row in correlation_table(runs).rows]
    assert [row[0] for row in rows] == ["all runs", "a", "b"]
    assert rows[1][1:] == ["6", "-1.00", "6 runs are too few for an interval, at least 10 are needed"]


def costing(method: str, accuracy: float, seconds: float, **changes: Any) -> Result:
    return make_run(method=method, accuracy=accuracy, epoch_seconds=seconds, **changes)


RUNS = [costing("linear_probe", 80, 1), costing("layer_ft", 90, 2), costing("lora", 88, 3), costing("full_ft", 90.5, 9)]


def test_pareto_front_is_what_nothing_beats() -> None:
    front = pareto_front(summarize(RUNS), "epoch_seconds")
    assert [row.variant.method for row in front] == ["linear_probe", "layer_ft", "full_ft"]


def test_pareto_front_agrees_with_the_definition_on_random_rows() -> None:
    chance = np.random.default_rng(1)
    runs = [costing(f"m{i}", float(chance.integers(50, 60)), float(chance.integers(1, 9))) for i in range(25)]
    rows = summarize(runs)

    def beaten(row: Any) -> bool:
        return any(
            other.accuracy >= row.accuracy
            and other.epoch_seconds <= row.epoch_seconds
            and (other.accuracy, -other.epoch_seconds) != (row.accuracy, -row.epoch_seconds)
            for other in rows
        )

    expected = {(row.accuracy, row.epoch_seconds) for row in rows if not beaten(row)}
    assert {(row.accuracy, row.epoch_seconds) for row in pareto_front(rows, "epoch_seconds")} == expected


def test_pareto_table_marks_the_cost_that_counts() -> None:
    table = pareto_table(summarize(RUNS))
    marked = {row[1].text: row[table.columns.index("s/epoch")].best for row in table.rows}
    assert marked == {"linear probe": True, "layer FT": True, "full FT": True}


def test_worst_classes_come_with_what_they_are_taken_for() -> None:
    confusion = ["0:9 1:1", "0:4 1:5 2:1", "2:10"]
    runs = [make_run(seed=seed, confusion=confusion, class_names=["cat", "dog", "owl"]) for seed in range(2)]
    assert worst_classes(runs) == [("dog", 50.0, "cat"), ("cat", 90.0, "dog"), ("owl", 100.0, NOTHING)]


def test_ties_count_as_wins_of_both() -> None:
    runs = [costing("layer_ft", 90, 1), costing("full_ft", 90, 2), costing("full_ft", 80, 2, dataset="b")]
    assert dict(wins(summarize(runs))) == {"layer FT": 1, "full FT": 2}
