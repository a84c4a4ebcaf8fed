import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import quick_first
from hypothesis import given
from hypothesis import strategies as st

from nc_finetune.data.splits import stratified as splits
from nc_finetune.data.splits.stratified import k_folds, split_off, take_per_class

LABELS = [0, 1, 2] * 6
UNEVEN = [0] * 9 + [1] * 5 + [2] * 3

label_lists = st.lists(st.integers(0, 5), min_size=2, max_size=80)
seeds = st.integers(0, 2**32)


@st.composite
def labels_and_size(draw: st.DrawFn) -> tuple[list[int], int]:
    labels = draw(label_lists)
    return labels, draw(st.integers(1, len(labels) - 1))


@given(labels_and_size(), seeds)
def test_split_off_is_disjoint_and_complete(case: tuple[list[int], int], seed: int) -> None:
    labels, size = case
    held_out, rest = split_off(labels, size, seed)
    assert sorted([*held_out, *rest]) == list(range(len(labels)))


@given(labels_and_size(), seeds)
def test_split_off_meets_the_size(case: tuple[list[int], int], seed: int) -> None:
    labels, size = case
    assert split_off(labels, size, seed)[0].size == size


@given(labels_and_size(), seeds)
def test_split_off_keeps_the_share_of_every_class(case: tuple[list[int], int], seed: int) -> None:
    labels, size = case
    held_out = Counter(labels[row] for row in split_off(labels, size, seed)[0])
    for label, count in Counter(labels).items():
        assert abs(held_out[label] - count * size / len(labels)) < 1


def test_many_small_classes_do_not_take_the_share_of_a_large_one() -> None:
    labels = [0] * 300 + [label for label in range(1, 101) for _ in range(3)]
    held_out, _ = split_off(labels, 60, seed=0)
    assert Counter(labels[row] == 0 for row in held_out) == {True: 30, False: 30}


def test_small_classes_take_turns_over_the_seeds() -> None:
    labels = [label for label in range(20) for _ in range(3)]
    classes = [{labels[row] for row in split_off(labels, 6, seed)[0]} for seed in range(20)]
    assert {len(found) for found in classes} == {6}
    assert set().union(*classes) == set(range(20))


@given(labels_and_size(), seeds)
def test_split_off_does_not_depend_on_the_names_of_the_classes(case: tuple[list[int], int], seed: int) -> None:
    labels, size = case
    renamed = [5 - label for label in labels]
    assert split_off(labels, size, seed)[0].tolist() == split_off(renamed, size, seed)[0].tolist()


@given(labels_and_size(), seeds)
def test_rows_come_in_rising_order(case: tuple[list[int], int], seed: int) -> None:
    for rows in split_off(*case, seed):
        assert rows.tolist() == sorted(rows.tolist())


@pytest.mark.parametrize(("seed", "rows"), [(0, [3, 7, 9, 11, 14]), (1, [7, 8, 9, 11, 16])])
def test_split_off_is_what_it_was(seed: int, rows: list[int]) -> None:
    # A change of the algorithm changes the splits of every result there is: it must be meant.
    assert split_off(UNEVEN, 5, seed)[0].tolist() == rows


@pytest.mark.parametrize(("seed", "rows"), [(0, [3, 7, 9, 11, 14, 16]), (1, [7, 8, 9, 11, 14, 16])])
def test_take_per_class_is_what_it_was(seed: int, rows: list[int]) -> None:
    assert take_per_class(UNEVEN, 2, seed)[0].tolist() == rows


@pytest.mark.parametrize("hash_seed", quick_first(1, ["1", "2"]))
def test_splits_do_not_depend_on_the_hash_seed_of_python(hash_seed: str) -> None:
    # The file alone: importing the package would take seconds.
    code = (
        f"import runpy; found = runpy.run_path({str(Path(splits.__file__))!r});"
        f"print(found['split_off']({LABELS}, 6, 0)[0].tolist(), found['take_per_class']({LABELS}, 2, 0)[0].tolist())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    here = split_off(LABELS, 6, 0)[0].tolist(), take_per_class(LABELS, 2, 0)[0].tolist()
    assert run.stdout.strip() == " ".join(map(str, here))


def test_a_share_is_rounded_to_a_number() -> None:
    assert split_off(LABELS, 0.29, seed=3)[0].tolist() == split_off(LABELS, 5, seed=3)[0].tolist()


def test_a_whole_float_is_a_number_of_rows() -> None:
    # YAML and command lines may turn 4 into 4.0 where both kinds are allowed.
    assert split_off(LABELS, 4.0, seed=3)[0].tolist() == split_off(LABELS, 4, seed=3)[0].tolist()


@pytest.mark.parametrize("size", [0, 0.0, -1, -0.5, 18, 19, 1.5, 0.01, 0.99, float("nan")])
def test_a_size_that_leaves_a_side_empty_is_refused(size: float) -> None:
    with pytest.raises(ValueError, match=rf"cannot split {size} of 18 images off: .*at least one image on both sides"):
        split_off(LABELS, size, seed=0)


@given(label_lists, seeds)
def test_take_per_class_draws_the_same_number_of_each(labels: list[int], seed: int) -> None:
    number = min(Counter(labels).values())
    drawn, _ = take_per_class(labels, number, seed)
    assert Counter(labels[row] for row in drawn) == dict.fromkeys(labels, number)


@given(label_lists, seeds)
def test_take_per_class_is_disjoint_and_complete(labels: list[int], seed: int) -> None:
    drawn, rest = take_per_class(labels, 1, seed)
    assert sorted([*drawn, *rest]) == list(range(len(labels)))


def test_a_larger_sample_contains_the_smaller_one() -> None:
    small, large = (set(take_per_class(LABELS, number, seed=5)[0].tolist()) for number in (2, 4))
    assert small < large


def test_too_few_rows_name_the_smallest_class() -> None:
    with pytest.raises(ValueError, match=r"^5 images a class were asked for, class 'owl' has 2; ask for fewer$"):
        take_per_class([0] * 4 + [1] * 2 + [2] * 9, 5, seed=0, class_names=["cat", "owl", "dog"])


def test_too_few_rows_without_names_give_the_label() -> None:
    with pytest.raises(ValueError, match=r"class 1 has 2"):
        take_per_class([0] * 4 + [1] * 2, 3, seed=0)


def test_the_rule_does_not_change_between_versions() -> None:
    # Published results name their splits by it: a change here makes them different ones.
    labels = [row % 3 for row in range(20)]
    assert split_off(labels, 6, seed=0)[0].tolist() == [3, 7, 8, 11, 16, 18]
    assert take_per_class(labels, 2, seed=1)[0].tolist() == [0, 7, 8, 9, 11, 16]
    assert k_folds(labels, 4, seed=0)[0].tolist() == [3, 6, 13, 14, 16]


@pytest.mark.parametrize("number", [2, 3, 7])
def test_folds_are_stratified_and_hold_every_row_once(number: int) -> None:
    labels = [0] * 20 + [1] * 9 + [2] * 3
    folds = k_folds(labels, number, seed=4)
    assert sorted(row for fold in folds for row in fold.tolist()) == list(range(32))
    for label, total in ((0, 20), (1, 9), (2, 3)):
        counts = [sum(labels[row] == label for row in fold) for fold in folds]
        assert all(total // number <= count <= -(-total // number) for count in counts)


@pytest.mark.parametrize("number", [1, 5])
def test_folds_that_cannot_be(number: int) -> None:
    with pytest.raises(ValueError, match=rf"4 images cannot be divided into {number} folds; give 2 to 4"):
        k_folds([0, 1, 0, 1], number, seed=0)
