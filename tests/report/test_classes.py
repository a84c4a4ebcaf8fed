import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from nc_finetune.report._tables.classes import close_table, spread_table
from nc_finetune.report._tables.summary import summarize
from nc_finetune.report._tables.tables import NOTHING, Table, group_table
from nc_finetune.report.content import build_report
from nc_finetune.report.markdown import render_markdown
from nc_finetune.report.page import render_page
from nc_finetune.report.spreadsheet import render_csv
from nc_finetune.results.result import Result, read_result, write_result

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
    ]


def test_classes_without_images_are_left_out_and_such_of_one_mean_come_first() -> None:
    spreads = {"cat": 1.0, "dog": math.inf, "owl": math.nan}
    rows = summarize([measured(0, class_spread=spreads), measured(1, class_spread={**spreads, "dog": 2.0, "owl": 1.5})])
    assert [line[2:4] for line in texts(spread_table(rows))] == [["dog", "∞"], ["owl", "1.50"], ["cat", "1.00"]]
    assert [entry.value for entry in spread_table(rows).rows[0]][3] == math.inf
    none = summarize([measured(0, class_spread=dict.fromkeys(NAMES))])
    assert spread_table(none).rows == ()


def test_means_that_coincide_are_the_closest_pair_in_old_records_too(tmp_path: Path) -> None:
    pairs = {"cat|owl": math.inf, "cat|dog": 4.0, "dog|owl": 1.0}
    for found in (pairs, {**pairs, "cat|owl": None}):
        read = read_result(write_result(measured(closest_pairs=found), tmp_path))
        lines = [line[2:4] for line in texts(close_table(summarize([read])))]
        assert lines == [["cat | owl", "∞"], ["cat | dog", "4.00"], ["dog | owl", "1.00"]]


def test_infinite_ones_are_in_every_kind_of_report() -> None:
    found = [measured(class_spread={"cat": math.inf, "dog": 2.0}, closest_pairs={"cat|dog": math.inf})]
    report = build_report(found)
    assert "∞" in render_markdown(report)
    page = render_page(report)
    assert 'data-value="Infinity">∞' in page
    assert 'data-value="inf"' not in page
    [line] = csv.DictReader(io.StringIO(render_csv(found)))
    assert json.loads(line["closest_pairs"], parse_constant=pytest.fail) == {"cat|dog": "Infinity"}


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
