"""Every class keeps an image for training wherever the split is ours to draw; what a split lacks is said."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from crossed import crossed
from hypothesis import given
from hypothesis import strategies as st
from made_up_images import make_rows, write_images, write_parquet

from nc_finetune.data import ImageData
from nc_finetune.data.splits.stratified import give_back, split_off

INTEGER = datasets.Value("int64")
# 30 of one class, and six classes of one, two or three images.
LONG_TAIL = [0] * 30 + [1, 2, 3, 3, 4, 4, 5, 5, 5, 6]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"test_size": 0.5},
    {"test_size": 20, "val_size": 8},
    {"val_size": 0.5},
    {"train_share": 0.4},
    {"samples_per_class": 1},
    {"fold": 0, "num_folds": 2},
    {"fold": 1, "num_folds": 2},
    {"fold": 4},
    {"balance_classes": True},
]


@pytest.mark.parametrize(("options", "seed"), crossed(OPTIONS, range(6)), ids=str)
def test_no_class_loses_all_training_images(tmp_path: Path, options: dict[str, Any], seed: int) -> None:
    write_parquet(tmp_path / "all.parquet", LONG_TAIL, INTEGER)
    data = ImageData(str(tmp_path), image_size=8, seed=seed, **options)
    assert min(data.class_counts) >= 1
    assert "train" not in data.summary.absent_classes
    again = ImageData(str(tmp_path), image_size=8, seed=seed, **options)
    assert data.splits_hash == again.splits_hash


@pytest.mark.parametrize("seed", range(3))
def test_sizes_are_met_all_the_same(tmp_path: Path, seed: int) -> None:
    write_parquet(tmp_path / "all.parquet", LONG_TAIL, INTEGER)
    data = ImageData(str(tmp_path), image_size=8, seed=seed, test_size=12, val_size=7)
    assert data.summary.images == {"train": 21, "val": 7, "test": 12}


def test_fewer_images_than_asked_for_are_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "all.parquet", [0, 1, 2, 3, 4, 4, 4], INTEGER)
    data = ImageData(str(tmp_path), image_size=8, test_size=4, val_size=1)
    with pytest.warns(UserWarning, match=r"test_size: \d images are held out and not 4, so that each class keeps one"):
        sizes = data.summary.images
    assert sizes["test"] < 4


def test_rows_of_several_labels_keep_each_label(tmp_path: Path) -> None:
    tags = [["sea"]] * 20 + [["sea", "boat"], ["sky"], ["sky", "sea"], ["pier", "sea"]]
    make_rows(tags, datasets.List(datasets.Value("string"))).to_parquet(str(tmp_path / "all.parquet"))
    for seed in range(5):
        assert min(ImageData(str(tmp_path), image_size=8, seed=seed, test_size=0.5, val_size=0.5).class_counts) >= 1


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 2**32), st.data())
def test_give_back(labels: list[int], seed: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(labels) - 1))
    held_out, _ = split_off(labels, size, seed)
    kept = give_back(held_out, [(label,) for label in labels], seed)
    left = {labels[row] for row in set(range(len(labels))) - set(kept.tolist())}
    assert 1 <= kept.size <= held_out.size
    if len(set(labels)) + size <= len(labels):
        assert kept.size == held_out.size
    assert left == set(labels) or kept.size == 1
    if {labels[row] for row in range(len(labels)) if row not in held_out} == set(labels):
        assert kept.tolist() == held_out.tolist()


# What the source itself leaves out


def declared(tmp_path: Path) -> str:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 10, datasets.ClassLabel(names=["cat", "dog", "owl"]))
    return str(tmp_path)


def folders(tmp_path: Path) -> str:
    write_images(tmp_path, *(f"train/{name}/{number}.png" for name in ("cat", "dog") for number in range(9)))
    write_images(tmp_path, "val/cat/1.png", "val/owl/1.png", "test/cat/1.png", "test/dog/1.png", value=9)
    return str(tmp_path)


def tables(tmp_path: Path) -> str:
    write_parquet(tmp_path / "train.parquet", ["cat", "dog"] * 9, datasets.Value("string"))
    write_parquet(tmp_path / "test.parquet", ["cat", "owl"], datasets.Value("string"))
    return str(tmp_path)


@pytest.mark.parametrize("write", [declared, folders, tables])
def test_a_class_without_a_training_image_is_named(tmp_path: Path, write: Any) -> None:
    data = ImageData(write(tmp_path), image_size=8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        absent = data.summary.absent_classes["train"]
        _ = data.train_set, data.splits_hash
    assert absent == ["owl"]
    assert len(caught) == 1
    assert str(caught[0].message).startswith("1 classes have no training image: 'owl'")


def test_the_warning_says_what_other_splits_lack(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"no training image: 'owl'; val lacks 'dog'; test lacks 'owl'"):
        _ = ImageData(folders(tmp_path), image_size=8).train_set


@pytest.mark.parametrize("name", ["Cat", "cat ", "CAT", "c\u200bat", "\uff43\uff41\uff54"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_folders_of_classes_that_hardly_differ_are_refused(tmp_path: Path, name: str, split: str) -> None:
    write_images(tmp_path, "train/cat/1.png", "train/dog/1.png", f"{split}/{name}/1.png", f"{split}/dog/1.png")
    with pytest.raises(ValueError, match=rf"the class names 'cat' \(train\) and .* \({split}\) hardly differ"):
        _ = ImageData(str(tmp_path)).class_names


def test_folders_of_two_file_systems_are_one_class(tmp_path: Path) -> None:
    write_images(tmp_path, "train/B\u00e4r/1.png", "train/dog/1.png", "val/Ba\u0308r/1.png", "val/dog/1.png")
    data = ImageData(str(tmp_path), image_size=8, test_size=1)
    assert data.class_names == ("B\u00e4r", "dog")
    assert data.data.splits["val"].labels == [0, 1]


def test_a_split_of_other_classes_alone_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/unknown/1.png", "test/unknown/2.png")
    with pytest.raises(ValueError, match=r"no class of the test split is in the train split: 'unknown'"):
        _ = ImageData(str(tmp_path)).class_names


def test_splits_are_what_they_were_where_every_class_had_a_training_image(tmp_path: Path) -> None:
    write_parquet(tmp_path / "all.parquet", [row % 3 for row in range(60)], INTEGER)
    rows = ImageData(str(tmp_path), image_size=8).plan.rows(ImageData(str(tmp_path)).data)
    labels = [row % 3 for row in range(60)]
    test, rest = split_off(labels, 0.2, seed=0)
    val, _ = split_off([labels[row] for row in rest], 0.1, seed=0)
    assert rows["test"][1].tolist() == test.tolist()
    assert rows["val"][1].tolist() == rest[val].tolist()
    assert Counter(labels[row] for row in test) == {0: 4, 1: 4, 2: 4}
