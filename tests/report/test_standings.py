import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from nc_finetune.report._tables.comparison import CONFIDENCE, Difference, _half_interval, difference
from nc_finetune.report._tables.standings import (
    Standing,
    alternatives,
    choice_table,
    comparison_table,
    recommended,
    reference_rows,
    standings,
    standings_table,
)
from nc_finetune.report._tables.summary import summarize
from nc_finetune.report._tables.tables import NOTHING
from nc_finetune.results.result import Result

TUNED = {"control": 0.0, "linear_probe": 0.4, "adapter": 5.1, "scl_ft": 5.4, "full_ft": 100.0}


def make_run(method: str, accuracy: float, seed: int = 0, dataset: str = "a", **changes: Any) -> Result:
    fields = {"backbone": "resnet18", "weights": None, "tuned_percent": TUNED[method], **changes}
    name = "-".join(map(str, (dataset, method, seed, *changes.values())))
    return Result(run_id=name, dataset=dataset, method=method, accuracy=accuracy, seed=seed, **fields)


def stand(*runs: Result) -> list[Standing]:
    return standings(summarize(runs))


TWO = [
    make_run("scl_ft", 90.0),
    make_run("full_ft", 91.0),
    make_run("linear_probe", 80.0),
    make_run("scl_ft", 70.0, dataset="b"),
    make_run("full_ft", 68.0, dataset="b"),
    make_run("linear_probe", 71.5, dataset="b"),
]


def test_ranks_and_distances_are_within_settings_and_averaged_over_them() -> None:
    found = {standing.label: standing for standing in stand(*TWO)}
    assert {label: standing.rank for label, standing in found.items()} == {
        "SCL-FT": 2.0,
        "full FT": 2.0,
        "linear probe": 2.0,
    }
    assert list(found["SCL-FT"].behind.values()) == [1.0, 1.5]
    assert (found["SCL-FT"].near, found["full FT"].near, found["SCL-FT"].accuracy) == (1, 1, 80.0)


def test_ties_share_the_mean_of_their_ranks_as_in_scipy() -> None:
    values = [3.0, 1.0, 3.0, 2.0, 3.0, 1.0]
    runs = [make_run("scl_ft", value, options={"scale": place}) for place, value in enumerate(values)]
    found = {standing.label: standing.rank for standing in stand(*runs)}
    ranks = stats.rankdata([-value for value in values])
    assert [found[f"SCL-FT, skip scale {place}"] for place in range(6)] == ranks.tolist()


def test_the_recommended_tunes_little_and_is_closest_to_the_best_on_average() -> None:
    choice = recommended(stand(*TWO))
    assert choice is not None
    assert choice.standing.label == "SCL-FT"


def test_a_head_of_many_classes_that_was_solved_is_as_light_as_a_small_one() -> None:
    solved = {"tuned_percent": 30.0, "readout": {"shrinkage": 0.1}}
    trained = {"tuned_percent": 30.0, "learning_rate": 1e-3}
    for fields, label in ((solved, "SCL-FT"), (trained, "linear probe")):
        runs = [
            run
            for name in "ab"
            for run in (make_run("scl_ft", 90, dataset=name, **fields), make_run("linear_probe", 80, dataset=name))
        ]
        found = recommended(stand(*runs))
        assert found is not None
        assert found.standing.label == label


def test_what_was_run_in_few_settings_is_not_recommended() -> None:
    choice = recommended(stand(*TWO, make_run("adapter", 99.0)))
    assert choice is not None
    assert choice.standing.label == "SCL-FT"


@pytest.mark.parametrize("runs", [TWO[:1], [make_run("full_ft", 90.0), make_run("scl_ft", 91.0, tuned_percent=12.0)]])
def test_nothing_is_recommended_without_a_comparison_or_a_light_method(runs: list[Result]) -> None:
    assert recommended(stand(*runs)) is None


def test_the_most_accurate_variant_of_a_method_stands_for_it() -> None:
    heads = [make_run("full_ft", 95.0, head="cosine_head"), make_run("full_ft", 66.0, dataset="b", head="cosine_head")]
    found = {standing.label: standing for standing in stand(*TWO, *heads)}
    rows = reference_rows(found.values(), "full_ft", found["SCL-FT"])
    assert [row.accuracy for row in rows.values()] == [95.0, 68.0]


def compare(ours: list[Result], theirs: list[Result], comparisons: int = 1) -> Difference:
    found = {standing.label: standing for standing in stand(*ours, *theirs)}
    compared = difference(found["SCL-FT"].rows, found["full FT"].rows, comparisons)
    assert compared is not None
    return compared


def over_seeds(method: str, accuracies: dict[int, float], **changes: Any) -> list[Result]:
    return [make_run(method, accuracy, seed, **changes) for seed, accuracy in accuracies.items()]


@pytest.mark.parametrize("comparisons", [1, 4])
@pytest.mark.parametrize("number", [3, 5, 20])
def test_difference_is_paired_by_seed_as_in_scipy(number: int, comparisons: int) -> None:
    chance = np.random.default_rng(0)
    samples = chance.normal(80, 5, number)
    ours, theirs = samples + chance.normal(2, 0.5, number), samples
    found = compare(
        over_seeds("scl_ft", dict(enumerate(ours.tolist()))),
        over_seeds("full_ft", dict(enumerate(theirs.tolist()))),
        comparisons,
    )
    expected = stats.ttest_rel(ours, theirs).confidence_interval(1 - 0.05 / comparisons)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert found.verdict == ("ahead" if expected.low > 0 else "not clear")


SHARED = {0: 60.0, 1: 90.0, 2: 75.0}


@pytest.mark.parametrize(
    ("more_ours", "more_theirs", "unpaired"),
    [
        (over_seeds("scl_ft", {7: 10.0, 8: 20.0}), [], 2),
        ([], over_seeds("full_ft", {7: 99.0, 8: 98.0}), 2),
        (over_seeds("scl_ft", {5: 1.0}), over_seeds("full_ft", {6: 99.0, 7: 99.0}), 3),
        (over_seeds("scl_ft", {0: 3.0}, dataset="b"), over_seeds("full_ft", {4: 90.0}, dataset="b"), 2),
        (over_seeds("scl_ft", {0: 3.0}, samples_per_class=5), over_seeds("full_ft", {0: 9.0}, samples_per_class=9), 2),
        (over_seeds("scl_ft", {3: 5.0}), [make_run("full_ft", 99.0, 3, status="diverged")], 1),
        (over_seeds("scl_ft", {3: 5.0}), [make_run("full_ft", math.nan, 3)], 1),
    ],
)
def test_one_point_ahead_on_every_shared_seed_is_one_point_ahead(
    more_ours: list[Result], more_theirs: list[Result], unpaired: int
) -> None:
    ours = over_seeds("scl_ft", {seed: value + 1 for seed, value in SHARED.items()})
    found = compare([*ours, *more_ours], [*over_seeds("full_ft", SHARED), *more_theirs])
    assert (found.mean, len(found.values), found.unpaired) == (1.0, 3, unpaired)
    standing = next(item for item in stand(*ours, *more_ours, *over_seeds("full_ft", SHARED)) if item.label == "SCL-FT")
    assert max(standing.behind.values()) == 0


def test_pairs_are_of_one_setting_each_of_which_counts_the_same() -> None:
    ours = [*over_seeds("scl_ft", {0: 91.0, 1: 92.0, 2: 93.0}), *over_seeds("scl_ft", {1: 40.0}, dataset="b")]
    theirs = [*over_seeds("full_ft", {0: 90.0, 1: 90.0, 2: 90.0}), *over_seeds("full_ft", {1: 36.0}, dataset="b")]
    found = compare(ours, theirs)
    assert (found.mean, len(found.values)) == (3.0, 4)
    assert list(found.points.values()) == [2.0, 4.0]


@pytest.mark.parametrize(
    ("ours", "why"),
    [
        ({0: 91.0}, "1 pair is too few, at least 3 are needed"),
        ({0: 91.0, 1: 91.0}, "2 pairs are too few, at least 3 are needed"),
        ({0: 91.0, 1: 95.0}, "2 pairs are too few, at least 3 are needed"),
        ({0: 91.0, 1: 91.0, 2: 91.0}, "no difference varies with the seed"),
        ({0: 90.1, 1: 90.1, 2: 90.1, 3: 90.1}, "no difference varies with the seed"),
    ],
)
@pytest.mark.parametrize("base", [0.0, 0.3])  # 0.3 does not subtract exactly
def test_no_interval_has_no_width_and_no_verdict(ours: dict[int, float], why: str, base: float) -> None:
    shift = {seed: base * seed for seed in ours}
    found = compare(
        over_seeds("scl_ft", {seed: value + shift[seed] for seed, value in ours.items()}),
        over_seeds("full_ft", {seed: 90.0 + shift[seed] for seed in ours}),
    )
    assert (found.low, found.high, found.verdict) == (None, None, "not clear")
    assert why in found.no_interval


def test_a_setting_with_one_pair_leaves_no_interval() -> None:
    ours = [*over_seeds("scl_ft", {0: 91.0, 1: 92.0, 2: 93.0}), *over_seeds("scl_ft", {1: 40.0}, dataset="b")]
    theirs = [*over_seeds("full_ft", {0: 90.0, 1: 90.0, 2: 90.0}), *over_seeds("full_ft", {1: 36.0}, dataset="b")]
    assert "at least 2 are needed in each setting" in compare(ours, theirs).no_interval


def test_the_best_of_twenty_equal_variants_is_hardly_ever_called_clear() -> None:
    chance, clear = np.random.default_rng(3), 0
    for _ in range(60):
        runs = [
            make_run("scl_ft", float(chance.normal(80, 1)), seed, options={"scale": place})
            for place, seed in np.ndindex(20, 5)
        ]
        choice, *rest = stand(*runs)
        clear += any(found.verdict != "not clear" for found in alternatives(choice, [choice, *rest]).values())
    assert clear <= 6  # of 60; for 19 comparisons alone they are 15


@pytest.mark.parametrize("status", ["diverged", "failed"])
@pytest.mark.parametrize("lost", [1, 2])
def test_what_lost_runs_is_not_recommended_while_something_else_can_be(status: Any, lost: int) -> None:
    runs = [
        *over_seeds("scl_ft", dict.fromkeys(range(lost, 3), 99.0)),
        *[make_run("scl_ft", 99.0, seed, status=status) for seed in range(lost)],
        *over_seeds("adapter", {0: 80.0, 1: 81.0, 2: 82.0}),
        *over_seeds("full_ft", {0: 85.0, 1: 86.0, 2: 84.0}),
    ]
    choice = recommended(stand(*runs))
    assert choice is not None
    assert choice.standing.label == "LoRA"
    only = [run for run in runs if run.method != "adapter"]
    assert recommended(stand(*only)) is None


def test_what_diverged_everywhere_in_one_setting_is_not_recommended() -> None:
    runs = [*TWO, make_run("adapter", 99.0), make_run("adapter", 99.0, dataset="b", status="diverged")]
    choice = recommended(stand(*runs))
    assert choice is not None
    assert choice.standing.label == "SCL-FT"


def label_of_choice(runs: list[Result]) -> tuple[str, tuple[str, ...]] | None:
    found = recommended(stand(*runs))
    return None if found is None else (found.standing.label, found.left_out)


def test_a_control_is_never_recommended() -> None:
    control = {"options": {"kind": "class_priors"}, "tuned_percent": 0.0, "readout": {"kind": "class_priors"}}
    runs = [*TWO, *(make_run("control", 99.0, dataset=name, **control) for name in "abc")]
    assert label_of_choice(runs) == ("SCL-FT", ())


def test_candidates_are_compared_where_most_of_their_runs_are() -> None:
    begun = [make_run("adapter", 99.0, dataset="c")]  # a third setting, of which the rest is still to run
    assert label_of_choice([*TWO, *begun]) == ("SCL-FT", ("LoRA",))
    other = [run for run in TWO if run.method != "scl_ft"] + [make_run("adapter", 99.0, dataset=name) for name in "ac"]
    # The probe has a and b, LoRA a and c: they compare on a alone, where LoRA is ahead.
    assert label_of_choice(other) == ("LoRA", ())
    apart = [make_run("linear_probe", 50.0), make_run("adapter", 99.0, dataset="c"), make_run("full_ft", 60.0)]
    assert label_of_choice(apart) is None


def test_one_good_seed_does_not_recommend_what_others_have_five_of() -> None:
    runs = [
        *over_seeds("scl_ft", {seed: 80.0 + seed for seed in range(5)}),
        *over_seeds("linear_probe", {seed: 70.0 + seed for seed in range(5)}),
        *over_seeds("full_ft", {seed: 81.0 + seed for seed in range(5)}),
        make_run("adapter", 99.0, 4),
    ]
    assert label_of_choice(runs) == ("SCL-FT", ("LoRA",))


@pytest.mark.parametrize(("theirs", "pairs"), [("same", 3), (None, 3), ("other", 2)])
def test_a_seed_with_which_other_images_were_drawn_is_no_pair(theirs: str | None, pairs: int) -> None:
    ours = [make_run("scl_ft", 91.0 + seed, seed, provenance={"splits_hash": "same"}) for seed in range(3)]
    others = [make_run("full_ft", 90.0, seed, provenance={"splits_hash": "same"}) for seed in range(2)]
    others.append(make_run("full_ft", 90.0, 2, provenance={} if theirs is None else {"splits_hash": theirs}))
    found = compare(ours, others)
    assert (len(found.values), found.unpaired) == (pairs, 6 - 2 * pairs)


def test_the_table_of_differences_has_what_the_words_say() -> None:
    runs = [
        *over_seeds("scl_ft", {0: 90.0, 1: 92.0, 2: 91.5, 5: 20.0}, epoch_seconds=1.0),
        *over_seeds("full_ft", {0: 90.0, 1: 91.0, 2: 92.0}, epoch_seconds=4.0),
        *over_seeds("linear_probe", {0: 80.0, 1: 81.0}),
    ]
    found = {standing.label: standing for standing in stand(*runs)}
    table = comparison_table(found["SCL-FT"], list(found.values()))
    rows = [dict(zip(table.columns, [cell.text for cell in row], strict=True)) for row in table.rows]
    assert [row["against"] for row in rows] == ["full FT", "linear probe"]
    assert rows[0] == {
        "against": "full FT",
        "points ahead": "+0.17",
        "95 % interval": rows[0]["95 % interval"],
        "verdict": "not clear",
        "pairs": "3",
        "won / level / lost": "1 / 1 / 1",
        "unpaired runs": "1",
        "epochs": "4.0 times",
        "tuned %": "100.00",
    }
    low, high = map(float, rows[0]["95 % interval"].split(" to "))
    assert low < 0.17 < high
    assert rows[1]["95 % interval"] == "none: 2 pairs are too few, at least 3 are needed"


def test_interval_over_settings_covers_the_truth_19_times_of_20() -> None:
    chance = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        noise = chance.normal(0, [[1.0], [2.0], [3.0]], (3, 4))
        runs = [
            run
            for place, seed in np.ndindex(3, 4)
            for run in (
                make_run("scl_ft", 81 + noise[place, seed], seed, f"d{place}"),
                make_run("full_ft", 80, seed, f"d{place}"),
            )
        ]
        found = {standing.label: standing for standing in stand(*runs)}
        compared = difference(found["SCL-FT"].rows, found["full FT"].rows)
        assert compared is not None
        assert compared.low is not None
        assert compared.high is not None
        covered += compared.low < 1 < compared.high
    assert 0.91 < covered / 300 < 0.99


def test_one_seed_has_a_difference_without_an_interval() -> None:
    found = {standing.label: standing for standing in stand(*TWO)}
    compared = difference(found["SCL-FT"].rows, found["full FT"].rows)
    assert compared is not None
    assert (compared.mean, compared.low, compared.verdict) == (0.5, None, "not clear")


def test_speed_is_the_geometric_mean_of_ratios_of_epochs() -> None:
    times = {("scl_ft", "a"): 1.0, ("full_ft", "a"): 2.0, ("scl_ft", "b"): 1.0, ("full_ft", "b"): 8.0}
    runs = [make_run(method, 90.0, dataset=place, epoch_seconds=time) for (method, place), time in times.items()]
    scl, full = sorted(stand(*runs), key=lambda standing: standing.label)
    compared = difference(scl.rows, full.rows)
    assert compared is not None
    assert compared.mean_speed == pytest.approx(4.0)


def test_cost_is_the_ratio_of_whole_runs() -> None:
    ours = [make_run("scl_ft", 90, dataset=name, processor_seconds=2.0) for name in "ab"]
    theirs = [make_run("full_ft", 80, dataset=name, processor_seconds=cost) for name, cost in (("a", 4.0), ("b", 16.0))]
    assert compare(ours, theirs).mean_cost == pytest.approx(4.0)
    assert compare([make_run("scl_ft", 90)], [make_run("full_ft", 80)]).mean_cost is None


def test_over_data_sets_few_sets_that_differ_leave_more_doubt_than_many_seeds() -> None:
    ours = [make_run("scl_ft", 80 + lead + 0.1 * seed, seed, name) for name, lead in LEADS for seed in range(5)]
    theirs = [make_run("full_ft", 80, seed, name) for name, _ in LEADS for seed in range(5)]
    found = compare(ours, theirs)
    assert found.verdict == "ahead"  # on these sets
    assert found.over_sets is not None
    low, high = found.over_sets
    assert low < 0 < found.mean < high
    wider = compare(ours, theirs, comparisons=10).over_sets
    assert wider is not None
    assert wider[0] < low < high < wider[1]
    two = [run for run in (*ours, *theirs) if run.dataset in "ab"]
    few = compare([run for run in two if run.method == "scl_ft"], [run for run in two if run.method == "full_ft"])
    assert few.over_sets is None


def test_over_data_sets_it_is_students_t_of_their_means_however_many_settings_each_has() -> None:
    leads = {"a": 1.0, "b": 2.0, "c": 6.0}
    ours = [make_run("scl_ft", 80 + lead, dataset=name) for name, lead in leads.items()]
    theirs = [make_run("full_ft", 80, dataset=name) for name in leads]
    found = compare(ours, theirs).over_sets
    expected = stats.t.interval(0.95, 2, loc=3.0, scale=stats.sem([*leads.values()]))
    assert found == pytest.approx(expected)
    more = [
        make_run(
            "scl_ft", 81.0 + size / 10, dataset=f"a ({size})", config={"dataset": {"name": "a", "image_size": size}}
        )
        for size in (-5, 0, 5)
    ]
    whole = {"a": {"config": {"dataset": {"name": "a"}}}}
    ours = [
        *more,
        *(make_run("scl_ft", 80 + lead, dataset=name, **whole.get(name, {})) for name, lead in leads.items()),
    ]
    theirs = [replace(run, method="full_ft", run_id=f"full {run.run_id}", accuracy=80.0) for run in ours]
    assert compare(ours, theirs).over_sets == pytest.approx(expected)  # a counts once, though it has four settings
    sizes = [
        {"config": {"dataset": {"name": "one", "image_size": size}}, "dataset": f"one ({size})"}
        for size in (32, 64, 96)
    ]
    ours, theirs = (
        [make_run(name, value, **size) for size in sizes] for name, value in (("scl_ft", 90), ("full_ft", 80))
    )
    assert compare(ours, theirs).over_sets is None  # one data set, in three sizes


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[1] * 7, [4, 4, 1, 1, 1, 1, 1], [4, 1, 1]])
def test_over_data_sets_one_interval_of_twenty_misses_however_many_settings_a_set_has(settings: list[int]) -> None:
    chance, missed, number = np.random.default_rng(0), 0, 400
    for _ in range(number):
        of_sets = chance.normal(0, 1, len(settings))  # the true mean over all sets is 0
        runs = [
            make_run(method, 80 + lead * (method == "scl_ft"), dataset=f"{place} {size}", config=config)
            for place, (lead, sizes) in enumerate(zip(of_sets.tolist(), settings, strict=True))
            for size in range(sizes)
            for method in ("scl_ft", "full_ft")
            for config in [{"dataset": {"name": str(place), "image_size": size}}]
        ]
        found = compare([run for run in runs if run.method == "scl_ft"], [r for r in runs if r.method == "full_ft"])
        assert found.over_sets is not None
        low, high = found.over_sets
        missed += not low <= 0 <= high
    assert 0.025 < missed / number < 0.08


@pytest.mark.slow
@pytest.mark.parametrize(("spreads", "least", "most"), [([1.0] * 3, 0.0, 0.05), ([3.0, 1.0, 0.3], 0.04, 0.16)])
def test_the_intervals_of_all_pairs_hold_together_as_often_as_the_report_says(
    spreads: list[float], least: float, most: float
) -> None:
    chance, methods, seeds, number = np.random.default_rng(0), 16, 5, 150
    pairs = math.comb(methods, 2)
    false = 0
    for _ in range(number):
        runs = chance.normal(0, 1, (methods, len(spreads), seeds)) * np.array(spreads)[:, None]
        false += any(
            abs((runs[one] - runs[other]).mean())
            > _half_interval(list(runs[one] - runs[other]), 1 - (1 - CONFIDENCE) / pairs)
            for one, other in itertools.combinations(range(methods), 2)
        )
    assert least <= false / number < most


LEADS = (("a", 6.0), ("b", -4.0), ("c", 4.0))


def test_what_shares_no_setting_is_not_compared() -> None:
    scl, full = stand(make_run("scl_ft", 90.0), make_run("full_ft", 91.0, dataset="b"))
    assert difference(scl.rows, full.rows) is None


def cells(runs: list[Result], label: str) -> dict[str, str]:
    rows = summarize(runs)
    table = standings_table(stand(*runs), rows)
    (line,) = [row for row in table.rows if row[0].text == label]
    return dict(zip(table.columns, [cell.text for cell in line], strict=True))


def test_table_says_at_a_glance_who_is_near_the_best_and_not_below_the_probe() -> None:
    found = cells(TWO, "SCL-FT")
    assert found["within 1 point of best"] == "✗ 1/2"
    assert found["not below probe"] == "✗ 1/2"
    assert (found["mean accuracy %"], found["points below best"], found["at most"]) == ("80.00", "1.25", "1.50")


def test_a_mean_over_fewer_settings_is_not_shown_beside_the_others() -> None:
    found = cells([*TWO, make_run("adapter", 99.0)], "LoRA")
    assert (found["mean accuracy %"], found["settings"]) == (NOTHING, "1")


def test_one_setting_needs_no_table_over_settings() -> None:
    assert standings_table(stand(*TWO[:3]), summarize(TWO[:3])).rows == ()
    assert choice_table(stand(*TWO[:3]), summarize(TWO[:3])).rows == ()


def test_choice_is_compared_in_each_setting() -> None:
    table = choice_table(stand(*TWO), summarize(TWO))
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["a", "90.00", "✓ -1.00", "✗ -1.00", "✓ +10.00", "full FT"],
        ["b", "70.00", "✗ -1.50", "✓ +2.00", "✗ -1.50", "linear probe"],
    ]


def test_a_run_without_a_result_takes_no_rank() -> None:
    found = stand(*TWO[:3], make_run("adapter", math.nan))
    assert [standing.label for standing in found] == ["full FT", "SCL-FT", "linear probe"]
