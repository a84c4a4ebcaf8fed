import csv
import io
from typing import Any

import pytest

from nc_finetune.report.spreadsheet import render_csv
from nc_finetune.results.result import Result

MEASURES = {"nc1": 0.5, "nc2_equinorm": 0.1, "nc2_etf_distance": 0.2, "nc3_etf_distance": 0.3, "nc4": 0.0}


def make_run(**changes: Any) -> Result:
    fields: dict[str, Any] = {"run_id": "r", "backbone": "b", "weights": None, "dataset": "d", "method": "scl_ft"}
    return Result(**{**fields, **changes})


def lines(*runs: Result) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render_csv(runs))))


def test_every_run_is_a_line_whatever_became_of_it() -> None:
    found = lines(make_run(run_id="a", accuracy=90.0), make_run(run_id="b", status="failed", error="no, not\nthis"))
    assert [(line["run_id"], line["accuracy"], line["status"]) for line in found] == [
        ("a", "90.0", "ok"),
        ("b", "", "failed"),
    ]
    assert found[1]["error"] == "no, not\nthis"


def test_measures_of_the_collapse_have_a_column_each() -> None:
    old, new = lines(make_run(nc1=0.4), make_run(nc1=0.5, collapse=MEASURES))
    assert {name: new[name] for name in MEASURES} == {name: str(value) for name, value in MEASURES.items()}
    assert (old["nc1"], old["nc2_etf_distance"], old["nc4"]) == ("0.4", "", "")


def test_columns_have_names_of_their_own() -> None:
    head = render_csv([make_run(nc1=0.5, collapse=MEASURES)]).splitlines()[0].split(",")
    assert len(set(head)) == len(head)


def test_balanced_accuracy_is_the_mean_recall() -> None:
    (known, unknown) = lines(make_run(confusion=["0:9 1:1", "0:1 1:1"]), make_run())
    assert (known["balanced_accuracy"], unknown["balanced_accuracy"]) == ("70.0", "")


def test_hashes_say_where_a_run_comes_from() -> None:
    (line,) = lines(make_run(provenance={"git_commit": "abc", "data_fingerprint": "def"}))
    assert (line["git_commit"], line["data_fingerprint"], line["weights_hash"]) == ("abc", "def", "")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_text_is_taken_for_a_formula(start: str) -> None:
    (line,) = lines(make_run(dataset=f"{start}cmd()"))
    assert line["dataset"] == f"'{start}cmd()".replace("\r", " ")


def test_negative_numbers_stay_numbers() -> None:
    (line,) = lines(make_run(collapse={"nc2_equinorm": -0.5}))
    assert line["nc2_equinorm"] == "-0.5"
