import math
from typing import Any

import pytest

from nc_finetune.report._tables.summary import summarize
from nc_finetune.report._tables.tables import group_table
from nc_finetune.report.outcome import edge_words, outcome
from nc_finetune.report.recommendation import recommendation_words
from nc_finetune.results.result import Result

TUNED = {"linear_probe": 0.4, "norm_tuning": 1.6, "adapter": 5.1, "scl_ft": 5.4, "layer_ft": 12.0, "full_ft": 100.0}


def make_run(method: str, accuracy: float, seed: int = 0, dataset: str = "a", **changes: Any) -> Result:
    fields = {"backbone": "resnet18", "weights": None, "tuned_percent": TUNED.get(method), **changes}
    name = "-".join(map(str, (dataset, method, seed, *changes.values())))
    return Result(run_id=name, dataset=dataset, method=method, accuracy=accuracy, seed=seed, **fields)


def seeds(method: str, *accuracies: float, **changes: Any) -> list[Result]:
    return [make_run(method, accuracy, seed, **changes) for seed, accuracy in enumerate(accuracies)]


def words(runs: list[Result]) -> str:
    return "\n".join(recommendation_words(summarize(runs)))


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
        "Recommended: SCL-FT, with 5.40 % of the parameters tuned: the closest to the best of all that tune at most "
        "10 %, or train nothing, and lost no run (accuracy 91.00 %). No mean is higher."
    )


def test_what_is_clear_and_what_is_not_is_read_off_the_intervals() -> None:
    runs = [
        *seeds("scl_ft", 90.0, 92.0, 91.0),
        *seeds("full_ft", 89.0, 93.0, 88.0),
        *seeds("adapter", 93.0, 95.1, 94.0, tuned_percent=12.0),
        *seeds("linear_probe", 80.0, 82.0, 81.1),
        *seeds("norm_tuning", 88.0, 87.0),
    ]
    assert (
        "Seed by seed against 4 alternatives: clearly ahead of 1 (linear probe); clearly behind 1 (LoRA); not clear "
        "against 1 (full FT); nothing is clear against 1 (norm tuning): 2 pairs are too few, at least 3 are needed. "
        "Runs without a counterpart are left out (1 over all comparisons)."
    ) in words(runs)


def test_two_equal_leads_are_not_called_clear() -> None:
    runs = [*seeds("scl_ft", 91.0, 92.0), *seeds("full_ft", 90.0, 91.0)]
    assert "clearly" not in words(runs)
    assert "2 pairs are too few, at least 3 are needed" in words(runs)


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_lone_candidate_that_lost_runs_is_not_recommended_and_it_is_said_why(status: Any) -> None:
    lost = [make_run("scl_ft", 99.0, seed, status=status) for seed in (1, 2)]
    runs = [make_run("scl_ft", 99.0), *lost, *seeds("full_ft", 90.0, 91.0, 92.0)]
    said = "\n".join(outcome(runs, summarize(runs)))
    assert (
        "Nothing is recommended: all that tune at most 10 % of the parameters, or train nothing, lost runs"
        f" (SCL-FT: 2 of 3 {status})." in said
    )
    assert "Recommended" not in said
    assert f"Without a result: SCL-FT: 2 of 3 {status}." in said
    assert f"SCL-FT (99.00 † %, 5.40 % of the parameters tuned; 2 of 3 {status})" in said


def test_a_setting_in_which_nothing_finished_is_named_and_held_against_the_recommendation() -> None:
    lost = [make_run(run.method, 0.0, run.seed, dataset="b", status="failed") for run in WINNER]
    said = "\n".join(outcome([*WINNER, *lost], summarize([*WINNER, *lost])))
    assert "Without a result: nothing finished on b (6 failed)." in said
    assert "Nothing is recommended: all that tune at most 10 %" in said
    only_full = [run for run in lost if run.method == "full_ft"]
    more = make_run("full_ft", 70.0, dataset="c")
    said = "\n".join(outcome([*WINNER, *only_full, more], summarize([*WINNER, *only_full, more])))
    assert "nothing finished on b (2 failed)" in said
    assert "it has no result in 1 of 2 settings (c)" in said


def test_rows_with_fewer_seeds_are_named_and_not_considered() -> None:
    runs = [*WINNER, make_run("norm_tuning", 99.0)]
    said = "\n".join(outcome(runs, summarize(runs)))
    assert "Not run with all seeds of their setting: norm tuning (1 of 2 seeds not run)." in said
    assert "Not considered, as not run with all the seeds and settings that it is chosen by: norm tuning." in said
    assert "Recommended: SCL-FT" in said


def test_what_shares_no_run_is_not_recommended() -> None:
    runs = [make_run("scl_ft", 90.0), make_run("linear_probe", 80.0, dataset="b"), make_run("full_ft", 70.0)]
    said = "Nothing is recommended: no two that tune at most 10 % of the parameters, or train nothing, and lost no run,"
    assert f"{said} share a setting and a seed." in words(runs)


def test_the_second_of_a_setting_comes_with_the_paired_difference() -> None:
    runs = [*seeds("scl_ft", 91.0, 92.0, 93.0), *seeds("full_ft", 90.0, 91.0, 92.1), make_run("full_ft", 20.0, 9)]
    said = "\n".join(outcome(runs, summarize(runs)))
    assert "followed by full FT" in said
    assert "+0.97 points over 3 pairs, clearly ahead (95 % interval +0.82 to +1.11)." in said


@pytest.mark.parametrize(
    ("nc1", "said"),
    [
        ([5.0, 4.0, 3.0, 2.0, 1.0], "no clear relation: Spearman -1.00, 5 runs are too few for an interval"),
        ([1.0] * 5, "no clear relation: no correlation, all runs have the same value"),
        ([1.0, 2.0, 3.0, math.inf, None], "Over 3 of 5 runs, accuracy and NC1 show no clear relation: no correlation"),
        ([12.0 - value for value in range(12)], "no clear relation: Spearman -1.00, no interval, the order is perfect"),
        ([*[12.0 - value for value in range(10)], 1.0, 2.0], "accuracy falls as NC1 grows: Spearman -0.99, 95 %"),
    ],
)
def test_nc1_and_accuracy_are_related_only_as_far_as_an_interval_says(nc1: list[float | None], said: str) -> None:
    runs = [make_run("scl_ft", 50.0 + seed, seed, nc1=value) for seed, value in enumerate(nc1)]
    assert said in "\n".join(outcome(runs, summarize(runs)))


def test_nothing_speaks_against_a_clear_winner() -> None:
    runs = [
        *seeds("scl_ft", 90.0, 92.0, 91.0),
        *seeds("full_ft", 85.0, 87.1, 86.0),
        *seeds("linear_probe", 80.0, 82.0, 81.1),
    ]
    assert objections(runs) == "What speaks against it: nothing in these results."


def test_a_lead_within_the_spread_is_called_that() -> None:
    runs = [*seeds("scl_ft", 90.0, 80.0, 85.0), *seeds("full_ft", 80.0, 89.0, 85.0)]
    assert "its lead over 1 (full FT) is not clear" in objections(runs)


def test_a_more_accurate_reference_is_named() -> None:
    runs = [*seeds("scl_ft", 90.0, 91.0, 92.0), *seeds("full_ft", 91.0, 92.0, 93.1)]
    assert "1 better than it, in points (full FT 1.03 (clear))" in objections(runs)
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
    assert "1 better than it, in points (layer FT 0.50 (not clear))" in objections(runs)


def test_what_tunes_far_less_and_is_as_good_is_named() -> None:
    runs = [make_run("scl_ft", 90.0), make_run("norm_tuning", 89.5), make_run("full_ft", 80.0)]
    assert "norm tuning tunes 1.60 % and is within 1 point of it" in objections(runs)


def test_an_accuracy_that_nc1_does_not_explain_is_said_to_be_that() -> None:
    runs = [make_run("scl_ft", 90.0, nc1=2.0), make_run("full_ft", 89.0, nc1=0.5)]
    assert "it is ahead of full FT with a higher mean NC1" in objections(runs)


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
    told = "\n".join(outcome(few, summarize(few)))
    counted = "\n".join(outcome(many, summarize(many)))
    assert "On a, the highest mean accuracy" in told
    assert (
        "Of 4 settings (data set, backbone, training size), the highest mean is that of SCL-FT in 4; full FT in 4."
        in counted
    )


def test_what_shares_no_seed_with_any_other_cannot_be_told() -> None:
    runs = [make_run("scl_ft", 90.0, 0), make_run("full_ft", 80.0, 1)]
    assert objections(runs).endswith("it shares no setting and seed with any other, so that nothing can be told.")


def test_what_is_clear_on_these_sets_alone_is_said_to_be() -> None:
    leads = {"a": 6.0, "b": 1.0, "c": 1.5}
    runs = [
        make_run(method, 80.0 + (seed + lead) * (method == "scl_ft") + (0.1 * seed - seed), seed, name)
        for name, lead in leads.items()
        for method in ("scl_ft", "full_ft")
        for seed in range(3)
    ]
    assert "clearly ahead of 1 (full FT). Over data sets that are random, too, 0 of 1 are clear." in words(runs)


def test_what_all_settings_share_is_said_once() -> None:
    runs = [make_run("scl_ft", 90.0, dataset=name) for name in "ab"]
    first, *rest = outcome(runs, summarize(runs))
    assert "All on resnet18 (random initialisation) · whole training split." in first
    assert not [line for line in rest if "resnet18" in line]


# Rates at the edge of those that were tried


def test_rows_whose_rates_are_not_bracketed_are_named() -> None:
    tried = {"0.001": 80.0, "0.003": 81.0, "0.01": None}
    runs = [
        make_run("full_ft", 80.0, seed, learning_rate=rate, learning_rates=tried)
        for seed, rate in enumerate((1e-3, 3e-3, 1e-3))
    ]
    inside = [make_run("layer_ft", 80.0, seed, learning_rate=3e-3, learning_rates=tried) for seed in range(3)]
    without = [make_run("readout", 80.0, seed) for seed in range(3)]
    rows = summarize([*runs, *inside, *without])
    assert edge_words(rows).startswith("At the edge of what was tried, so that better may lie beyond")
    assert ": full FT (learning rate 2 of 3). A grid with extend_rates" in edge_words(rows)
    assert edge_words(rows) in outcome([*runs, *inside, *without], rows)
    assert edge_words(summarize([*inside, *without])) == ""
    table = group_table(rows)
    place = table.columns.index("learning rate")
    rates = {line[0].text: line[place].text for line in table.rows}
    assert rates == {"full FT": "0.001, 0.003 \N{DOUBLE DAGGER}", "layer FT": "0.003", "readout": "\N{EN DASH}"}


def test_a_list_that_was_extended_already_is_not_advised_to_be() -> None:
    config = {"choice": {"by": "folds", "extend_rates": True}}
    run = make_run("full_ft", 80.0, learning_rate=0.1, learning_rates={"0.03": 79.0, "0.1": 80.0}, config=config)
    assert edge_words(summarize([run])).endswith(": full FT (learning rate 1 of 1).")


@pytest.mark.parametrize(
    ("readout", "changes", "words"),
    [
        ({"neighbors": 100.0}, {}, "neighbours 1 of 1"),
        ({"neighbors": 1.0}, {}, ""),  # there are no fewer
        ({"shrinkage": 1.0}, {}, ""),
        ({"neighbors": 20.0}, {"train_size": 40}, "neighbours 1 of 1"),  # of 40 images no more were tried
        ({"neighbors": 20.0}, {"train_size": 200}, ""),
        ({"l2": 100.0, "folds_accuracy": 80.0}, {}, "penalty 1 of 1"),
        ({"l2": 0.1, "folds_accuracy": 100.0}, {}, ""),
        ({"shrinkage": 1e-4 / (1 + 1e-4), "layers": "all"}, {}, "shrinkage 1 of 1"),
        ({"shrinkage": 0.5}, {}, ""),
        ({"shrinkage": 0.5}, {"options": {"shrinkage": 0.5}}, ""),  # given, not chosen
        ({"shrinkage": 0.5}, {"options": {"shrinkage": [0.1, 0.5]}}, "shrinkage 1 of 1"),
        ({"shrinkage": 0.1}, {"options": {"shrinkage": [0.1, 0.5, 0.9], "head.shrinkage": 0.1}}, "shrinkage 1 of 1"),
        ({"shrinkage": 1e-4 / (1 + 1e-4), "taken": "trained"}, {}, ""),
        ({"shrinkage": 0.2}, {"config": {"method": {"solve_head": {"shrinkage": [0.2, 0.3]}}}}, "shrinkage 1 of 1"),
    ],
)
def test_solved_heads_at_the_edge_of_their_lists_are_marked(
    readout: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    rows = summarize([make_run("control", 80.0, readout=readout, **changes)])
    mark = " \N{DOUBLE DAGGER}" if words else ""
    table = group_table(rows)
    assert table.rows[0][table.columns.index("learning rate")].text == f"\N{EN DASH}{mark}"
    assert (f"control ({words})" in edge_words(rows)) == bool(words)


def test_rows_that_took_all_the_epochs_there_were_are_named() -> None:
    known: dict[str, Any] = {"config": {"settings": {"epochs": 3}}, "choice": {"by": "folds", "epochs": [1, 2, 3]}}
    runs = [make_run("scl_ft", 80.0, seed, epochs=epochs, **known) for seed, epochs in enumerate((3, 2, 3))]
    alone = make_run("full_ft", 80.0, epochs=1, choice={"by": "folds", "epochs": [1]})
    (line,) = [line for line in outcome(runs, summarize([*runs, alone])) if "last epoch" in line]
    assert line == "Not as good before the last epoch, so that more may be better: SCL-FT (2 of 3)."
