"""Images of one group are on one side of every split that is drawn."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from crossed import crossed
from hypothesis import given
from hypothesis import strategies as st
from made_up_images import make_rows, write_images
from sklearn.model_selection import StratifiedGroupKFold

from nc_finetune.cli import main
from nc_finetune.data import ImageData
from nc_finetune.data.splits.groups import k_folds_of_groups, split_off_groups, take_per_class_in_groups
from nc_finetune.run.specs import DatasetSpec

STRING = datasets.Value("string")
# 24 persons of 5 images each; a person has images of one class, or of both.
PERSONS = [f"p{number // 5:02}" for number in range(120)]
LABELS = [
    ("cat", "dog")[(number // 5) % 2] if number // 5 < 16 else ("cat", "dog")[number % 2] for number in range(120)
]


def parquet(folder: Path) -> tuple[str, str]:
    make_rows(LABELS, STRING).add_column("person", PERSONS).to_parquet(str(folder / "all.parquet"))
    return str(folder), "person"


def numbers(folder: Path) -> tuple[str, str]:
    rows = make_rows(LABELS, STRING).add_column("person", [int(person[1:]) for person in PERSONS])
    rows.save_to_disk(str(folder))
    return str(folder), "person"


def csv_table(folder: Path) -> tuple[str, str]:
    write_images(folder, *(f"{number}.png" for number in range(120)))
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "person"])
        writer.writerows([f"{number}.png", LABELS[number], PERSONS[number]] for number in range(120))
    return str(folder), "person"


def file_names(folder: Path) -> tuple[str, str]:
    write_images(folder, *(f"{LABELS[number]}/{PERSONS[number]}_{number}.png" for number in range(120)))
    return str(folder), r"^(p\d+)_"


def whole_match(folder: Path) -> tuple[str, str]:
    write_images(folder, *(f"{LABELS[number]}/{number}-{PERSONS[number]}.png" for number in range(120)))
    return str(folder), r"p\d+"


def path_names(folder: Path) -> tuple[str, str]:
    write_images(folder, *(f"{LABELS[number]}/{PERSONS[number]}/{number}.png" for number in range(120)))
    return str(folder), r"p\d+"


SOURCES = [parquet, numbers, csv_table, file_names, whole_match, path_names]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"test_size": 0.4, "val_size": 0.3},
    {"test_size": 20, "val_size": 20},
    {"samples_per_class": 6},
    {"samples_per_class": 6, "val_size": 10},
    {"train_share": 0.5},
    {"fold": 0, "num_folds": 3},
    {"fold": 4},
]


@pytest.mark.parametrize(
    ("write", "options"), crossed(SOURCES, OPTIONS), ids=lambda value: value.__name__ if callable(value) else str(value)
)
def test_no_group_is_in_two_splits(tmp_path: Path, write: Any, options: dict[str, Any]) -> None:
    source, group = write(tmp_path)
    for seed in (0, 1):
        data = ImageData(source, image_size=8, group=group, seed=seed, **options)
        assert data.summary.shared_groups == {}
        assert data.summary.groups == 24
        assert min(data.summary.images.values()) > 0
        assert min(data.class_counts) > 0
        again = ImageData(source, image_size=8, group=group, seed=seed, **options)
        assert again.splits_hash == data.splits_hash


def test_without_groups_persons_are_on_both_sides(tmp_path: Path) -> None:
    source, group = parquet(tmp_path)
    plain = ImageData(source, image_size=8)
    persons = {split: {PERSONS[row] for row in plain.images(split).indices} for split in ("train", "val", "test")}
    assert persons["train"] & persons["test"]
    assert ImageData(source, image_size=8, group=group).splits_hash != plain.splits_hash


def test_the_test_split_is_the_same_for_every_seed_and_validation_is_not(tmp_path: Path) -> None:
    source, group = parquet(tmp_path)
    data = [ImageData(source, image_size=8, group=group, seed=seed) for seed in range(4)]
    assert len({str(one.images("test").indices) for one in data}) == 1
    assert len({str(one.images("val").indices) for one in data}) > 1


def test_samples_per_class_are_exact(tmp_path: Path) -> None:
    source, group = parquet(tmp_path)
    assert ImageData(source, image_size=8, group=group, samples_per_class=7).class_counts == [7, 7]


@given(st.integers(0, 2**32), st.floats(0.15, 0.5))
def test_shares_are_met_as_nearly_as_groups_allow(seed: int, share: float) -> None:
    labels = [0, 1, 2] * 200
    names = [str(row // 6) for row in range(600)]
    held_out, rest = split_off_groups(labels, names, share, seed)
    assert abs(held_out.size - share * 600) <= 6
    assert sorted([*held_out, *rest]) == list(range(600))
    assert len({labels.count(label) and sum(labels[row] == label for row in held_out) for label in range(3)}) == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=4, max_size=80), st.integers(0, 99))
def test_what_is_held_out_leaves_each_class_an_image(rows: list[tuple[int, int]], seed: int) -> None:
    labels, names = [label for label, _ in rows], [str(name) for _, name in rows]
    try:
        held_out, rest = split_off_groups(labels, names, 0.3, seed)
    except ValueError as error:
        assert "groups can be held out" in str(error)  # noqa: PT017
        return
    assert {labels[row] for row in rest} == set(labels)
    assert not {names[row] for row in rest} & {names[row] for row in held_out}


@pytest.mark.parametrize("seed", range(3))
def test_folds_are_as_even_as_those_of_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    names = [str(name) for name in random.integers(0, 40, 300)]
    labels = [int(name) % 3 if random.random() < 0.7 else int(random.integers(3)) for name in names]

    def spread(folds: list[Any]) -> float:
        counts = np.array([np.bincount([labels[row] for row in fold], minlength=3) for fold in folds])
        return float((counts / counts.sum(axis=0)).std(axis=0).mean())

    ours = k_folds_of_groups(labels, names, 5, seed)
    theirs = [test for _, test in StratifiedGroupKFold(5).split(labels, labels, names)]
    assert sorted(row for fold in ours for row in fold.tolist()) == list(range(300))
    assert sum(len({names[row] for row in fold}) for fold in ours) == len(set(names))
    assert spread(ours) <= 1.25 * spread(theirs) + 0.002


def test_a_sample_leaves_whole_groups() -> None:
    labels, names = [0, 1] * 20, [str(row // 4) for row in range(40)]
    drawn, rest = take_per_class_in_groups(labels, names, 3, seed=0)
    assert Counter(labels[row] for row in drawn) == {0: 3, 1: 3}
    assert not {names[row] for row in drawn} & {names[row] for row in rest}
    assert len(rest) == 32


# What cannot be


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (
            "persn",
            r"group='persn' is no column of every split \(label, person\), and the images have no names of files",
        ),
        ("(p", r"group='\(p' is no column of every split \(label, person\), no regular expression: missing \)"),
    ],
)
def test_a_group_that_is_not_known(tmp_path: Path, group: str, message: str) -> None:
    source, _ = parquet(tmp_path)
    with pytest.raises(ValueError, match=message):
        _ = ImageData(source, group=group).splits_hash


def test_a_pattern_that_is_not_in_every_name(tmp_path: Path) -> None:
    source, group = file_names(tmp_path)
    write_images(tmp_path, "cat/stray.png")
    with pytest.raises(ValueError, match=r"as a regular expression it is not in 'cat/stray\.png'; name a column, or"):
        _ = ImageData(source, group=group).splits_hash


def test_a_row_without_a_group(tmp_path: Path) -> None:
    rows = make_rows(["cat", "dog"] * 3, STRING).add_column("person", ["a", "b", None, "c", "d", "e"])
    rows.to_parquet(str(tmp_path / "all.parquet"))
    with pytest.raises(ValueError, match=r"row 2 of the train split has no group in the column 'person'; fill it in"):
        _ = ImageData(str(tmp_path), group="person").splits_hash


def test_a_class_of_one_group_stays_in_training_and_all_such_classes_are_refused(tmp_path: Path) -> None:
    rows = make_rows(["cat", "dog"] * 5, STRING).add_column("person", ["a", "b"] * 5)
    rows.to_parquet(str(tmp_path / "all.parquet"))
    with pytest.raises(ValueError, match=r"test_size: none of the 2 groups can be held out: each holds all images of"):
        _ = ImageData(str(tmp_path), group="person").splits_hash


def shared(folder: Path) -> str:
    train = make_rows(LABELS, STRING).add_column("person", PERSONS)
    test = make_rows(["cat", "dog"], STRING).add_column("person", ["p03", "x"])
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(folder))
    return str(folder)


def test_splits_of_the_source_that_share_a_group_are_not_trained_on(tmp_path: Path) -> None:
    data = ImageData(shared(tmp_path), image_size=8, group="person")
    assert set(data.summary.shared_groups) == {"p03"}
    with pytest.raises(ValueError, match=r"1 groups of group='person' are in two splits that the source brings along"):
        _ = data.train_set


def test_data_check_counts_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "check.json"
    assert main(["data", "check", shared(tmp_path / "data"), "--group", "person", "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "25 groups" in printed
    assert "1 groups that are in two splits" in printed
    assert "p03: " in printed
    found = json.loads(out.read_text())
    assert (found["groups"], list(found["shared_groups"])) == (25, ["p03"])


def test_a_grid_takes_groups(tmp_path: Path) -> None:
    source, group = parquet(tmp_path)
    data = DatasetSpec(source=source, group=group, image_size=8).build(None, 0, 8, 0)
    assert data.splits_hash == ImageData(source, group=group).splits_hash
