from typing import Any

import pytest

from nc_finetune.report._tables.selectors import selector_regrets, selector_table
from nc_finetune.report._tables.summary import summarize
from nc_finetune.report.content import build_report
from nc_finetune.results.result import Result

ACCURACY = {"blocks.0": 80.0, "blocks.1": 90.0, "blocks.2": 88.0}
VALIDATION = {"blocks.0": 70.0, "blocks.1": 85.0, "blocks.2": 86.0}


def make_run(**changes: Any) -> Result:
    fields = {"backbone": "resnet18", "weights": "imagenet", "dataset": "digits", "method": "scl_ft", "epochs": 10}
    fields |= changes
    return Result(run_id="-".join(map(str, fields.values())), **fields)  # type: ignore[arg-type]


def task(seed: int = 0, chosen: str = "blocks.1", **changes: Any) -> list[Result]:
    every = [
        make_run(
            seed=seed,
            key_layer=block,
            accuracy=ACCURACY[block],
            val_accuracy=VALIDATION[block],
            run_seconds=20.0,
            **changes,
        )
        for block in ACCURACY
    ]
    rules = {"argmin NC1": "blocks.0", "middle block": "blocks.1"}
    selection = {"block": chosen, "seconds": 30.0, "rounds": [], "other_rules": rules}
    auto = make_run(seed=seed, key_layer=chosen, accuracy=ACCURACY[chosen], selection=selection, **changes)
    return [*every, auto]


def test_regret_is_points_below_the_best_block() -> None:
    found = selector_regrets([*task(0, "blocks.1"), *task(1, "blocks.2")])
    assert found["short trials"]["regret"] == [0.0, 2.0]
    assert found["argmin NC1"]["regret"] == [10.0, 10.0]
    assert found["brute force"]["regret"] == [2.0, 2.0]


@pytest.mark.parametrize("rates", [{"0.001": 85.0}, {"0.001": 85.0, "0.01": 80.0}])
def test_cost_is_in_fine_tunings_with_one_learning_rate(rates: dict[str, float]) -> None:
    found = selector_regrets(task(learning_rates=rates))
    assert found["short trials"]["cost"] == [pytest.approx(1.5 * len(rates))]
    assert found["brute force"]["cost"] == [3.0]


def test_table_is_sorted_and_marks_the_best_rule_that_is_not_brute_force() -> None:
    table = selector_table([*task(0, "blocks.2"), *task(1, "blocks.2")])
    assert [row[0].text for row in table.rows] == ["middle block", "short trials", "brute force", "argmin NC1"]
    assert [row[1].best for row in table.rows] == [True, False, False, False]


def test_a_choice_without_runs_of_every_block_says_nothing() -> None:
    assert selector_table(task()[-1:]).rows == ()
    assert selector_table([*task(0)[:-1], task(1)[-1]]).rows == ()


def test_seeds_that_chose_different_blocks_are_one_row() -> None:
    rows = summarize([task(0, "blocks.1")[-1], task(1, "blocks.2")[-1]])
    assert [(row.variant.key_layer, row.seeds) for row in rows] == [("auto", 2)]


def test_the_report_has_the_table() -> None:
    assert "Choice of the key layer" in [section.title for section in build_report(task()).sections]
