import math
from dataclasses import replace
from typing import Any

import pytest

from nc_finetune.report._tables.comparison import best_rows
from nc_finetune.report._tables.groups import common_words, setting_names
from nc_finetune.report._tables.summary import summarize
from nc_finetune.report._tables.tables import (
    NOTHING,
    accuracy_text,
    group_table,
    long_table,
    measure_text,
    overview_table,
)
from nc_finetune.results.result import Result


def make_run(**changes: Any) -> Result:
    fields = {"backbone": "resnet18", "weights": "imagenet", "dataset": "digits", "method": "full_ft", **changes}
    return Result(run_id="-".join(map(str, fields.values())), **fields)


def over_seeds(accuracies: list[float], **changes: Any) -> list[Result]:
    return [make_run(seed=seed, accuracy=accuracy, **changes) for seed, accuracy in enumerate(accuracies)]


def test_mean_and_sample_sd_of_accuracy() -> None:
    (row,) = summarize(over_seeds([90.0, 92.0, 97.0]))
    assert row.seeds == 3
    assert row.accuracy == pytest.approx(93.0)
    assert row.accuracy_sd == pytest.approx(math.sqrt((9 + 1 + 16) / 2))


def test_mean_and_sample_sd_of_nc1() -> None:
    (row,) = summarize([make_run(seed=seed, nc1=nc1) for seed, nc1 in enumerate([1.0, 2.0, 4.0])])
    assert row.nc1 == pytest.approx(7 / 3)
    assert row.nc1_sd == pytest.approx(math.sqrt((16 + 1 + 25) / 9 / 2))


def test_mean_and_sample_sd_of_nc2() -> None:
    (row,) = summarize([make_run(seed=seed, collapse={"nc2_etf_distance": nc2}) for seed, nc2 in enumerate([0.5, 1.0])])
    assert (row.nc2, row.nc2_sd) == pytest.approx((0.75, math.sqrt(0.125)))


def test_one_seed_has_no_sd() -> None:
    (row,) = summarize([make_run(accuracy=90.0, nc1=0.5)])
    assert row.accuracy_sd is None
    assert row.nc1_sd is None
    assert (accuracy_text(row), measure_text(row.nc1, row.nc1_sd)) == ("90.00", "0.500")


@pytest.mark.parametrize("undefined", [None, float("nan"), float("inf")])
def test_undefined_nc1_is_left_out_of_the_mean(undefined: float | None) -> None:
    (row,) = summarize([make_run(seed=0, nc1=undefined), make_run(seed=1, nc1=0.25)])
    assert row.nc1 == 0.25


def test_row_without_any_measurement_is_all_dashes() -> None:
    runs = [make_run()]
    (cells,) = group_table(summarize(runs)).rows
    assert [cell.text for cell in cells] == ["full FT", *[NOTHING] * 8, "1"]


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_no_number_of_a_lost_run_counts_but_its_row_counts_it(status: Any) -> None:
    runs = [make_run(seed=0, accuracy=90.0), make_run(seed=1, accuracy=10.0, status=status)]
    (row,) = summarize([*runs, make_run(seed=2, status=status)])
    assert (row.seeds, row.accuracy, row.lost_words) == (1, 90.0, f"2 of 3 {status}")
    table = group_table([row])
    text = dict(zip(table.columns, [cell.text for cell in table.rows[0]], strict=True))
    assert (text["accuracy %"], text["seeds"]) == ("90.00 †", f"1 (2 of 3 {status})")


def test_a_finished_run_without_a_test_result_is_counted_where_others_have_one() -> None:
    (row,) = summarize([make_run(seed=0, accuracy=90.0), make_run(seed=1, accuracy=math.nan)])
    assert row.lost_words == "1 of 2 without a test result"


def test_a_seed_that_finished_at_last_is_not_lost() -> None:
    runs = [make_run(accuracy=90.0), replace(make_run(), status="failed", run_id="before")]
    assert [row.lost for row in summarize(runs)] == [{}]


@pytest.mark.parametrize(
    "lost",
    [
        {"method": "scl_ft"},  # failed before its head and its key layer were known
        {"method": "scl_ft", "key_layer": "blocks.4", "head": "cosine_head"},
        {"method": "scl_ft", "selection": {"block": "blocks.2"}},  # trials chose a block before the fit diverged
    ],
)
def test_a_lost_run_belongs_to_the_row_of_its_method_that_lacks_its_seed(lost: dict[str, Any]) -> None:
    known = {"method": "scl_ft", "key_layer": "blocks.4", "head": "cosine_head"}
    runs = [make_run(seed=0, accuracy=90.0, **known), make_run(seed=1, status="diverged", **lost)]
    runs += [make_run(seed=seed, accuracy=80.0) for seed in range(2)]
    assert [row.lost_words for row in summarize(runs)] == ["1 of 2 diverged", ""]


def test_a_lost_run_of_images_with_several_labels_belongs_to_their_group() -> None:
    runs = [make_run(seed=0, average_precision=90.0), make_run(seed=1, status="failed")]
    assert [row.lost_words for row in summarize(runs)] == ["1 of 2 failed"]


def test_what_diverged_on_every_seed_has_a_row_that_says_so() -> None:
    runs = [make_run(accuracy=90.0), *[make_run(method="scl_ft", seed=seed, status="diverged") for seed in range(3)]]
    rows = [[cell.text for cell in row] for row in group_table(summarize(runs)).rows]
    assert (rows[0][0], rows[0][2], rows[0][-1]) == ("SCL-FT", NOTHING, "0 (3 of 3 diverged)")


def test_a_group_of_lost_runs_alone_has_rows_that_say_so_beside_one_that_finished() -> None:
    assert summarize([make_run(status="failed")]) == []
    rows = summarize(
        [make_run(), make_run(dataset="lost", status="failed"), make_run(dataset="lost", status="diverged")]
    )
    assert [(row.group.dataset, row.seeds, row.lost_words) for row in rows] == [
        ("digits", 1, ""),
        ("lost", 0, "1 of 1 diverged"),
    ]


def test_costs_are_chosen_rates_mean_time_and_largest_memory() -> None:
    runs = [
        make_run(seed=0, learning_rate=0.1, epoch_seconds=2.0, peak_memory_bytes=5),
        make_run(seed=1, learning_rate=0.01, epoch_seconds=4.0, peak_memory_bytes=7),
        make_run(seed=2, learning_rate=0.1, epoch_seconds=3.0, peak_memory_bytes=None),
    ]
    (row,) = summarize(runs)
    assert row.learning_rates == (0.01, 0.1)
    assert row.epoch_seconds == pytest.approx(3.0)
    assert row.peak_memory_bytes == 7


@pytest.mark.parametrize(
    ("bytes_", "text"), [(512 * 2**20, "512 MiB"), (2**30, "1.00 GiB"), (int(6.25 * 2**30), "6.25 GiB")]
)
def test_memory_is_written_in_binary_units(bytes_: int, text: str) -> None:
    runs = [make_run(peak_memory_bytes=bytes_)]
    table = group_table(summarize(runs))
    assert table.rows[0][table.columns.index("peak memory")].text == text


def test_methods_come_by_what_they_tune_then_by_name() -> None:
    names = ["linear_probe", "layer_ft", "scl_ft", "full_ft", "another", "zoom"]
    runs = [make_run(method=name) for name in sorted(names)]
    assert [row.variant.method for row in summarize(runs)] == names


def test_groups_come_by_dataset_then_backbone_then_size_the_whole_split_last() -> None:
    groups = [("a", "x", 5), ("a", "x", 20), ("a", "x", None), ("a", "y", 5), ("b", "x", 5)]
    runs = [
        make_run(dataset=dataset, backbone=name, samples_per_class=size) for dataset, name, size in reversed(groups)
    ]
    found = [(row.group.dataset, row.group.backbone, row.group.samples_per_class) for row in summarize(runs)]
    assert found == groups


def test_key_layers_come_in_natural_order() -> None:
    layers = ["blocks.2", "blocks.9", "blocks.10"]
    rows = summarize(make_run(method="scl_ft", key_layer=layer) for layer in reversed(layers))
    assert [row.variant.key_layer for row in rows] == layers


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "faces"},
        {"backbone": "vit"},
        {"weights": None},
        {"method": "scl_ft"},
        {"key_layer": "layer3.0"},
        {"head": "simplex_etf"},
        {"loss": "focal"},
        {"samples_per_class": 5},
    ],
)
def test_runs_that_differ_in_more_than_the_seed_get_rows_of_their_own(change: dict[str, Any]) -> None:
    assert len(summarize([make_run(seed=0), make_run(seed=1, **change)])) == 2


def test_mixed_conventions_are_refused() -> None:
    runs = [make_run(seed=0, nc1_normalize="none"), make_run(seed=1, nc1_normalize="classes")]
    with pytest.raises(ValueError, match=r"cannot be drawn in one picture.*'classes', 'none'.*separate folders"):
        summarize(runs)


def test_convention_of_a_failed_run_does_not_matter() -> None:
    runs = [make_run(seed=0, nc1_normalize="classes"), make_run(seed=1, status="failed")]
    assert len(summarize(runs)) == 1


def test_a_seed_that_would_count_twice_is_refused() -> None:
    runs = [make_run(seed=3, accuracy=accuracy) for accuracy in (5.0, 10.0)]
    with pytest.raises(ValueError, match=r"one run a seed.*share seed 3"):
        summarize(runs)


def test_best_is_the_highest_mean_not_the_highest_run() -> None:
    runs = [*over_seeds([99.0, 80.0], method="full_ft"), *over_seeds([91.0, 92.0], method="scl_ft")]
    assert [row.variant.method for row in best_rows(summarize(runs))] == ["scl_ft"]


def test_the_best_is_so_on_the_seeds_that_two_rows_share() -> None:
    lucky = over_seeds([99.0], method="full_ft")  # on the seed with which the other one comes to 99.5
    rows = summarize([*over_seeds([99.5, 60.0], method="scl_ft"), *lucky])
    assert [row.variant.method for row in best_rows(rows)] == ["scl_ft"]
    assert {row.label: (row.missing_words, accuracy_text(row)[-1]) for row in rows} == {
        "SCL-FT": ("", "3"),
        "full FT": ("1 of 2 seeds not run", "\N{DAGGER}"),
    }


def test_equal_means_are_all_best() -> None:
    runs = [*over_seeds([90.0, 92.0], method="full_ft"), *over_seeds([92.0, 90.0], method="scl_ft")]
    assert len(best_rows(summarize(runs))) == 2


def test_group_table_marks_the_best_accuracy_only() -> None:
    runs = [*over_seeds([91.0], method="layer_ft"), *over_seeds([93.0, 94.0], method="scl_ft")]
    table = group_table(summarize(runs))
    assert [cell.text for row in table.rows for cell in row if cell.best] == ["93.50 ± 0.71"]


def test_overview_puts_methods_downwards_and_groups_across() -> None:
    runs = [
        make_run(method="layer_ft", dataset="a", accuracy=80.0, nc1=0.5),
        make_run(method="scl_ft", dataset="a", accuracy=81.0, nc1=0.25),
        make_run(method="scl_ft", dataset="b", accuracy=70.0, nc1=2.0),
    ]
    table = overview_table(summarize(runs))
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["layer FT", "80.00 / 0.500", NOTHING],
        ["SCL-FT", "81.00 / 0.250", "70.00 / 2.00"],
    ]
    assert [[cell.best for cell in row] for row in table.rows] == [[False, False, False], [False, True, True]]


def test_settings_are_named_by_what_sets_them_apart() -> None:
    runs = [make_run(dataset=name, samples_per_class=size) for name in "ab" for size in (5, 20)]
    groups = [row.group for row in summarize(runs)]
    assert list(setting_names(groups).values()) == [
        f"{name} · {size} images a class" for name in "ab" for size in (5, 20)
    ]
    assert common_words(groups) == "All on resnet18 (imagenet)."


def test_one_setting_has_its_full_name_and_nothing_in_common() -> None:
    (row,) = summarize([make_run(samples_per_class=5)])
    assert setting_names([row.group, row.group]) == {row.group: row.group.label}
    assert common_words([row.group]) == ""


def test_recalls_are_averaged_in_the_table_where_classes_are_uneven() -> None:
    uneven = make_run(accuracy=95.0, confusion=["0:95 1:5", "0:2 1:3"])
    runs = [uneven, replace(uneven, seed=1, run_id="b", confusion=["0:95 1:5", "0:1 1:4"])]
    table = group_table(summarize(runs))
    assert table.rows[0][table.columns.index("balanced %")].text == "82.50"


def test_recalls_are_not_in_the_table_where_classes_are_even() -> None:
    runs = [make_run(confusion=["0:9 1:1", "0:2 1:8"])]
    assert "balanced %" not in group_table(summarize(runs)).columns


def test_runs_of_another_measure_are_another_group() -> None:
    rows = summarize([make_run(seed=0, accuracy=90.0), make_run(seed=1, average_precision=50.0)])
    assert [row.accuracy for row in rows] == [90.0, 50.0]
    assert long_table(rows).columns[3] == "accuracy or average precision %"
