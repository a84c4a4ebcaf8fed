from typing import Any

from nc_finetune.report._tables.classes import close_table, spread_table
from nc_finetune.report._tables.summary import summarize
from nc_finetune.report._tables.tables import NOTHING, Table, group_table
from nc_finetune.report.content import build_report
from nc_finetune.results.result import Result

NAMES = ["cat", "dog", "owl"]
CONFUSION = ["0:9 1:1", "0:4 1:5 2:1", "2:10"]


def make_run(seed: int = 0, **changes: Any) -> Result:
    fields: dict[str, Any] = {
        "backbone": "b",
        "weights": None,
        "dataset": "pets",
        "method": "full_ft",
        "accuracy": 80.0,
    }
    return Result(run_id=f"r{seed}", seed=seed, **{**fields, **changes})


def measured(seed: int = 0, **changes: Any) -> Result:
    fields: dict[str, Any] = {
        "class_names": NAMES,
        "confusion": CONFUSION,
        "class_spread": {"cat": 1.0, "dog": 3.0 + seed, "owl": None},
        "closest_pairs": {"cat|dog": 2.0, "dog|owl": 0.5} if seed else {"cat|dog": 4.0},
    }
    return make_run(seed, **{**fields, **changes})


def texts(table: Table) -> list[list[str]]:
    return [[entry.text for entry in row] for row in table.rows]


def test_classes_come_by_spread_with_what_becomes_of_their_test_images() -> None:
    rows = summarize([measured(0), measured(1)])
    assert [line[2:] for line in texts(spread_table(rows))] == [
        ["dog", "3.50", "50.0", "cat"],
        ["cat", "1.00", "90.0", "dog"],
        ["owl", "0", "100.0", NOTHING],
    ]


def test_pairs_come_by_cdnv_with_how_they_are_confused() -> None:
    rows = summarize([measured(0), measured(1)])
    assert [line[2:] for line in texts(close_table(rows))] == [
        ["cat | dog", "3.00", "25.0"],
        ["dog | owl", "0.250", "5.0"],
    ]


def test_runs_without_either_give_no_tables_and_no_columns() -> None:
    rows = summarize([make_run()])
    assert (spread_table(rows).rows, close_table(rows).rows) == ((), ())
    assert "calibration error %" not in group_table(rows).columns
    assert "Calibration error" not in build_report([make_run()]).notes


def test_tables_are_in_the_report_beside_the_worst_classes() -> None:
    found = build_report([measured(calibration_error=8.25, tempered_calibration_error=2.0)])
    titles = [section.title for section in found.sections]
    place = titles.index("Worst classes")
    assert titles[place + 1 : place + 3] == ["Classes that collapse least", "Closest classes"]
    assert "tempered: at one temperature" in found.notes


def test_calibration_has_columns_before_and_after() -> None:
    errors = {"calibration_error": 8.25, "tempered_calibration_error": None}
    table = group_table(summarize([measured(**errors), measured(1, **{**errors, "calibration_error": 8.75})]))
    [cells] = [dict(zip(table.columns, line, strict=True)) for line in texts(table)]
    assert (cells["calibration error %"], cells["tempered %"]) == ("8.5", NOTHING)
