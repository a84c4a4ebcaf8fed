import json
import math
from pathlib import Path
from typing import Any

import pytest

from nc_finetune.results.merging import merge_results
from nc_finetune.results.result import Result, read_result, read_results, write_result


def make_result(**changes: object) -> Result:
    fields = {"run_id": "r1", "backbone": "resnet18", "weights": None, "dataset": "digits", "method": "scl_ft"}
    return Result(**{**fields, **changes})  # type: ignore[arg-type]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    result = make_result(
        accuracy=91.5, nc1_layers={"stem": 3.0}, collapse={"nc1": 1.0}, provenance={"versions": {"torch": "2"}}
    )
    assert read_result(write_result(result, tmp_path / "new" / "results")) == result


def test_record_from_before_the_collapse_measures_is_read(tmp_path: Path) -> None:
    path = write_result(make_result(), tmp_path)
    record = json.loads(path.read_text())
    del record["collapse"]
    path.write_text(json.dumps(record))
    assert read_result(path).collapse == {}


def test_record_from_before_classes_and_calibration_is_read(tmp_path: Path) -> None:
    path = write_result(make_result(calibration_error=3.0, class_spread={"cat": 1.0}), tmp_path)
    record = json.loads(path.read_text())
    for name in ("class_spread", "closest_pairs", "calibration_error", "tempered_calibration_error", "temperature"):
        del record[name]
    path.write_text(json.dumps(record))
    found = read_result(path)
    assert (found.class_spread, found.closest_pairs) == ({}, {})
    assert (found.calibration_error, found.tempered_calibration_error, found.temperature) == (None, None, None)


def test_values_that_are_not_finite_become_null(tmp_path: Path) -> None:
    path = write_result(make_result(nc1=float("nan"), nc1_layers={"stem": float("inf")}), tmp_path)
    record = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert record["nc1"] is None
    assert record["nc1_layers"] == {"stem": None}


def test_infinite_spreads_and_cdnvs_are_told_from_unknown_ones(tmp_path: Path) -> None:
    spreads, pairs = {"cat": math.inf, "dog": 2.0, "owl": math.nan}, {"cat|dog": math.inf}
    path = write_result(make_result(class_spread=spreads, closest_pairs=pairs, nc1=math.inf), tmp_path)
    json.loads(path.read_text(), parse_constant=pytest.fail)
    found = read_result(path)
    assert found.class_spread == {"cat": math.inf, "dog": 2.0, "owl": None}
    assert found.closest_pairs == pairs
    assert found.nc1 is None
    assert read_result(write_result(found, tmp_path)) == found


@pytest.mark.parametrize("value", ["infinite", {"cat": "inf"}, {"cat": "much"}])
def test_spreads_of_another_kind_are_refused(tmp_path: Path, value: object) -> None:
    path = write_result(make_result(), tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "class_spread": value}))
    with pytest.raises(ValueError, match="is not a benchmark result \\(class_spread is"):
        read_result(path)


def test_results_of_a_folder_come_sorted(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_result(make_result(run_id=name), tmp_path)
    assert [result.run_id for result in read_results(tmp_path)] == ["a", "b"]


def test_folder_that_is_not_there_has_no_results(tmp_path: Path) -> None:
    assert read_results(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"run_id": "r1", "acc', "is not valid JSON"),
        ("[1, 2]", "schema version None"),
        ('{"schema_version": 99}', "schema version 99, this version reads 1"),
        ('{"schema_version": 1, "run_id": "r1"}', "is not a benchmark result"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"broken\.json.*{message}"):
        read_result(path)


@pytest.mark.parametrize("folder", sorted((Path(__file__).parents[2] / "benchmarks/results").glob("*/results")))
def test_published_results_are_readable(folder: Path) -> None:
    results = read_results(folder)
    assert results
    assert all(result.status == "ok" for result in results)


def write_folder(folder: Path, *results: Result) -> Path:
    for result in results:
        write_result(result, folder / "results")
    return folder


def test_folders_merge_and_a_finished_run_counts_before_a_failed_one(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", make_result(status="failed"), make_result(run_id="r2", seed=2, accuracy=1.0))
    second = write_folder(tmp_path / "b", make_result(accuracy=3.0), make_result(run_id="r2", seed=2, accuracy=2.0))
    runs, problems = merge_results([first, second])
    assert {run.run_id: run.accuracy for run in runs} == {"r1": 3.0, "r2": 1.0}
    (problem,) = problems
    assert problem.startswith(f"1 of 2 runs in {second} came to other numbers than the same runs that were read before")
    assert problem.endswith("which are shown: r2 (accuracy 1 and 2)")


def test_the_same_results_twice_are_nothing_to_speak_of(tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / name, make_result(accuracy=1 / 3)) for name in "ab"]
    assert [len(part) for part in merge_results(folders)] == [1, 0]


def test_files_that_are_no_results_are_left_out_and_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, make_result())
    (folder / "results" / "cut.json").write_text('{"run_id": "r1"')
    (folder / "results" / "old.json").write_text('{"schema_version": 0}')
    (folder / "results" / "folder.json").mkdir()
    (folder / "results" / "gone.json").symlink_to(tmp_path / "nowhere")
    (folder / "results" / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    runs, problems = merge_results([folder])
    assert len(runs) == 1
    said = (
        "cut.json is not valid JSON",
        "deep.json is nested too deep",
        "folder.json cannot be read",
        "gone.json cannot",
    )
    assert all(any(words in problem for problem in problems) for words in (*said, "old.json has schema version 0"))
    assert len(problems) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choice": {"edges": None}}, "choice is damaged"),
        ({"choice": {"epochs": 15}}, "choice is damaged"),
        ({"learning_rate": 0.1, "learning_rates": {"fast": 1.0}}, "choice is damaged"),
        ({"config": {"dataset": "digits"}}, "config has 'digits' as dataset, which is no mapping"),
        ({"confusion": ["0:1", "1:1"], "class_names": ["cat"]}, "confusion is of 2 classes, and 1 are named"),
    ],
)
def test_records_with_damaged_parts_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_result(make_result(**changes), tmp_path)
    with pytest.raises(ValueError, match=f"{path.name} is not a benchmark result .*{message}"):
        read_result(path)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there are no results in .*run the benchmark first"):
        merge_results([write_folder(tmp_path / "a", make_result()), tmp_path / "b"])


def test_a_run_that_differs_in_its_name_alone_is_left_out_and_named(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", make_result(run_id="old", accuracy=1.0))
    second = write_folder(tmp_path / "b", make_result(run_id="new", accuracy=2.0), make_result(run_id="x", seed=1))
    runs, problems = merge_results([first, second])
    assert {run.run_id for run in runs} == {"old", "x"}
    assert "1 of 2 runs in" in problems[0]
    assert problems[0].endswith("from runs that were read before: new (old)")
