from typing import Any

from nc_finetune.benchmark.labels import variant_labels
from nc_finetune.benchmark.outcome import outcome, recommendation_words
from nc_finetune.benchmark.results import Result
from nc_finetune.benchmark.summary import summarize

TUNED = {"linear_probe": 0.4, "norm_tuning": 1.6, "adapter": 5.1, "scl_ft": 5.4, "layer_ft": 12.0, "full_ft": 100.0}


def make_run(method: str, accuracy: float, seed: int = 0, dataset: str = "a", **changes: Any) -> Result:
    fields = {"backbone": "resnet18", "weights": None, "tuned_percent": TUNED[method], **changes}
    name = "-".join(map(str, (dataset, method, seed, *changes.values())))
    return Result(run_id=name, dataset=dataset, method=method, accuracy=accuracy, seed=seed, **fields)


def seeds(method: str, *accuracies: float, **changes: Any) -> list[Result]:
    return [make_run(method, accuracy, seed, **changes) for seed, accuracy in enumerate(accuracies)]


def words(runs: list[Result]) -> str:
    return "\n".join(recommendation_words(summarize(runs), variant_labels(runs)))


def objections(runs: list[Result]) -> str:
    (line,) = [line for line in words(runs).splitlines() if line.startswith("What speaks against it: ")]
    return line


WINNER = [
    *seeds("scl_ft", 90.0, 92.0, epoch_seconds=1.0),
    *seeds("full_ft", 88.0, 90.1, epoch_seconds=4.0),
    *seeds("linear_probe", 80.0, 82.0, epoch_seconds=0.1),
]


def test_the_recommendation_comes_with_its_share_and_its_accuracy() -> None:
    assert words(WINNER).startswith(
        "Recommended: SCL-FT, with 5.40 % of the parameters tuned: the highest accuracy (91.00 %) of all that tune at "
        "most 10 %. Nothing is better."
    )


def test_the_recommendation_is_compared_with_what_was_run() -> None:
    lines = words(WINNER).splitlines()
    assert "Against full FT: +1.95 points" in lines[1]
    assert lines[1].endswith("epochs 4.0 times as fast.")
    assert lines[2].endswith("epochs 10.0 times as slow.")
    assert "LoRA" not in words(WINNER)


def test_nothing_speaks_against_a_clear_winner() -> None:
    runs = [
        *seeds("scl_ft", 90.0, 92.0, 91.0),
        *seeds("full_ft", 85.0, 87.1, 86.0),
        *seeds("linear_probe", 80.0, 82.0, 81.1),
    ]
    assert objections(runs) == "What speaks against it: nothing in these results."


def test_a_lead_within_the_spread_is_called_that() -> None:
    runs = [*seeds("scl_ft", 90.0, 80.0, 85.0), *seeds("full_ft", 80.0, 89.0, 85.0)]
    assert "its lead over full FT is within the spread over seeds" in objections(runs)


def test_a_more_accurate_reference_is_named() -> None:
    runs = [*seeds("scl_ft", 90.0, 91.0, 92.0), *seeds("full_ft", 91.0, 92.0, 93.1)]
    assert "full FT is 1.03 points better" in objections(runs)
    assert "It is 1.03 points below the best of all." in words(runs)


def test_a_setting_below_the_probe_is_named() -> None:
    runs = [
        *[make_run("scl_ft", 90.0), make_run("linear_probe", 80.0)],
        *[make_run("scl_ft", 70.0, dataset="b"), make_run("linear_probe", 72.0, dataset="b")],
    ]
    found = objections(runs)
    assert "it is more than 1 point below the best in 1 of 2 settings, most on b (2.00)" in found
    assert "it is below linear probe in 1 setting, most on b (-2.00)" in found
    assert "below the best of each setting on average, at most 2.00 (b); within 1 point in 1 of 2" in words(runs)


def test_what_tunes_more_and_is_more_accurate_is_named() -> None:
    runs = [make_run("scl_ft", 90.0), make_run("layer_ft", 90.5), make_run("linear_probe", 80.0)]
    assert "layer FT, which tunes 12.00 %, is 0.50 points better" in objections(runs)


def test_what_tunes_far_less_and_is_as_good_is_named() -> None:
    runs = [make_run("scl_ft", 90.0), make_run("norm_tuning", 89.5), make_run("full_ft", 80.0)]
    assert "norm tuning tunes 1.60 % and is within 1 point of it on average" in objections(runs)


def test_an_accuracy_that_nc1_does_not_explain_is_said_to_be_that() -> None:
    runs = [make_run("scl_ft", 90.0, nc1=2.0), make_run("full_ft", 89.0, nc1=0.5)]
    assert "its NC1 is above that of full FT: collapse does not explain it" in objections(runs)


def test_what_is_nearly_as_good_and_faster_is_named() -> None:
    runs = [
        make_run("scl_ft", 90.0, epoch_seconds=2.0),
        make_run("adapter", 89.5, epoch_seconds=1.0),
        make_run("linear_probe", 60.0, epoch_seconds=0.1),
    ]
    assert "Faster and within 1 point: LoRA (-0.50 points, epochs 2.0 times as fast)." in words(runs)


def test_nothing_is_called_faster_than_itself() -> None:
    assert "Faster" not in words(WINNER)


def test_few_settings_are_told_one_by_one_and_many_are_counted() -> None:
    few = [make_run(method, 90.0, dataset=name) for name in "ab" for method in ("scl_ft", "full_ft")]
    many = [make_run(method, 90.0, dataset=name) for name in "abcd" for method in ("scl_ft", "full_ft")]
    told = "\n".join(outcome(few, summarize(few), variant_labels(few)))
    counted = "\n".join(outcome(many, summarize(many), variant_labels(many)))
    assert "On a, the highest mean accuracy" in told
    assert "Of 4 settings (data set, backbone, training size), the best is SCL-FT in 4; full FT in 4." in counted


def test_what_all_settings_share_is_said_once() -> None:
    runs = [make_run("scl_ft", 90.0, dataset=name) for name in "ab"]
    first, *rest = outcome(runs, summarize(runs), variant_labels(runs))
    assert "All on resnet18 (random initialisation) · whole training split." in first
    assert not [line for line in rest if "resnet18" in line]
