import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from made_up_images import make_rows, write_images, write_parquet

from nc_finetune import ImageClassifier
from nc_finetune.data import ImageData
from nc_finetune.losses import ClassBalanced, PickAllLabelsLoss


@pytest.fixture
def pets(tmp_path: Path) -> str:
    """Return a source of 30 cats and 20 dogs in which image i has the grey value i."""
    write_parquet(tmp_path / "pets/train.parquet", [0] * 30 + [1] * 20)
    return str(tmp_path / "pets")


def shown(data: ImageData) -> dict[str, list[int]]:
    """Return the grey values of each split: by them the made-up images are told apart."""
    splits = {"train": data.train_set, "val": data.val_set, "test": data.test_set}
    return {name: sorted(int(split[i][0][0, 0, 0]) for i in range(len(split))) for name, split in splits.items()}


# Shares and folds


@pytest.mark.parametrize("share", [0.15, 0.3, 0.5, 1.0])
def test_a_share_of_the_training_images(pets: str, share: float) -> None:
    whole, part = ImageData(pets, image_size=8), ImageData(pets, image_size=8, train_share=share)
    assert len(part.train_set) == round(share * len(whole.train_set))
    assert set(shown(part)["train"]) <= set(shown(whole)["train"])
    assert (shown(part)["val"], shown(part)["test"]) == (shown(whole)["val"], shown(whole)["test"])


def test_a_share_is_stratified(pets: str) -> None:
    assert Counter(ImageData(pets, image_size=8, train_share=0.5).train_set.labels) == {0: 11, 1: 7}


def test_folds_hold_every_training_image_out_once(pets: str) -> None:
    folds = [shown(ImageData(pets, image_size=8, fold=fold, num_folds=4)) for fold in range(4)]
    assert sorted(value for fold in folds for value in fold["val"]) == sorted(folds[0]["train"] + folds[0]["val"])
    assert all(not set(fold["val"]) & set(fold["train"]) for fold in folds)
    assert len({str(fold["test"]) for fold in folds}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_share": 0}, r"train_share must lie in \(0, 1\], got 0"),
        ({"train_share": 1.5}, r"train_share must lie in \(0, 1\], got 1\.5"),
        ({"train_share": 0.5, "samples_per_class": 3}, r"both say how much to train on; give one of them"),
        ({"fold": 5}, r"fold must lie in \[0, num_folds\) with num_folds >= 2, got 5 of 5"),
        ({"fold": 0, "num_folds": 1}, r"fold must lie in \[0, num_folds\) with num_folds >= 2, got 0 of 1"),
        ({"fold": 0, "val_size": 0.5}, r"fold says what is held out for validation; leave val_size and"),
    ],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData("never looked at", **options)


# Files of splits


def test_a_file_of_splits_survives_another_order_of_the_rows(pets: str, tmp_path: Path) -> None:
    file = str(tmp_path / "splits.json")
    first = shown(ImageData(pets, image_size=8, samples_per_class=5, split_file=file))
    table = datasets.load_dataset("parquet", data_files=f"{pets}/train.parquet")["train"]
    table.select(list(reversed(range(50)))).to_parquet(f"{pets}/train.parquet")
    assert shown(ImageData(pets, image_size=8, samples_per_class=5)) != first
    assert shown(ImageData(pets, image_size=8, samples_per_class=5, split_file=file)) == first


def test_an_image_that_is_there_twice_stays_twice(tmp_path: Path) -> None:
    write_images(tmp_path / "pets", *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(10)))
    file = str(tmp_path / "splits.json")
    first, second = (ImageData(str(tmp_path / "pets"), image_size=8, split_file=file) for _ in range(2))
    assert [len(split) for split in (first.train_set, first.val_set, first.test_set)] == [14, 2, 4]
    rows = [row for split in (second.train_set, second.val_set, second.test_set) for row in split.indices]
    assert sorted(rows) == list(range(20))


def test_a_file_of_splits_whose_images_are_gone(pets: str, tmp_path: Path) -> None:
    file = tmp_path / "splits.json"
    _ = ImageData(pets, image_size=8, split_file=str(file)).train_set
    write_parquet(tmp_path / "pets/train.parquet", [0] * 15 + [1] * 15)
    with pytest.raises(
        ValueError, match=r"\d+ of the \d+ images of the \w+ split in .*splits\.json are not in the source"
    ):
        _ = ImageData(pets, image_size=8, split_file=str(file)).train_set


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"format_version": 9, "splits": {}})])
def test_a_damaged_file_of_splits(pets: str, tmp_path: Path, content: str) -> None:
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(ValueError, match=r"splits\.json is no file of splits.*delete it to split anew"):
        _ = ImageData(pets, image_size=8, split_file=str(tmp_path / "splits.json")).train_set


def test_a_file_of_splits_of_another_source(pets: str, tmp_path: Path) -> None:
    file = tmp_path / "splits.json"
    _ = ImageData(pets, image_size=8, split_file=str(file)).train_set
    file.write_text(file.read_text().replace('"train",', '"validation",'))
    with pytest.raises(ValueError, match=r"has a table 'validation', the source has train; it is of another source"):
        _ = ImageData(pets, image_size=8, split_file=str(file)).train_set


def test_the_hash_of_the_splits(pets: str) -> None:
    plain, same, other = (ImageData(pets, image_size=8, seed=seed) for seed in (0, 0, 1))
    assert plain.splits_hash == same.splits_hash != other.splits_hash


# Duplicates


def test_images_that_are_in_two_splits(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 5)
    rows = make_rows([0, 1] * 5).select([3, 4])
    fresh = make_rows([0] * 12).select([10, 11])
    datasets.concatenate_datasets([rows, fresh]).to_parquet(str(tmp_path / "test.parquet"))
    data = ImageData(str(tmp_path), image_size=8, val_size=2)
    assert {found.second for found in data.duplicates} == {("test", 0), ("test", 1)}
    assert {found.first[1] for found in data.duplicates} == {3, 4}
    assert all(found.same_label for found in data.duplicates)


def test_one_picture_with_two_labels(tmp_path: Path) -> None:
    write_images(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/dog/copy.png", value=7)
    write_images(tmp_path, "train/cat/3.png", "train/dog/4.png", value=99)
    data = ImageData(str(tmp_path), image_size=8, val_size=2)
    assert [found.same_label for found in data.duplicates].count(False) >= 1
    assert any("with another label" in str(found) for found in data.duplicates)


def test_a_fit_warns_of_them(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"train/{name}/{number}.png" for name in ("cat", "dog") for number in range(6)), value=7)
    write_images(tmp_path, "test/dog/copy.png", value=7)
    with pytest.warns(UserWarning, match=r"\d+ images are in two splits, e\.g\.\n  .*0\.png \(train\) = .*png \(val\)"):
        ImageData(str(tmp_path), image_size=8, val_size=2).setup("fit")


def test_different_images_of_one_size_are_no_duplicates(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "train", "train", "train", "test")):
        write_images(tmp_path, f"{split}/cat/{number}.bmp", f"{split}/dog/{number}.bmp", value=number)
        write_images(tmp_path, f"{split}/dog/{number}.bmp", value=100 + number)
    assert ImageData(str(tmp_path), image_size=8, val_size=2).duplicates == []


# Imbalance


def test_balanced_sampling(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0] * 200 + [1] * 20)
    data = ImageData(str(tmp_path), image_size=8, balance_classes=True, test_size=22, val_size=22)
    loader = data.train_dataloader()
    drawn: Counter[int] = Counter()
    for epoch in range(5):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        drawn.update(label for _, labels in loader for label in labels.tolist())
    assert drawn[1] / drawn.total() == pytest.approx(0.5, abs=0.08)


def test_class_counts_are_those_of_the_training_images(pets: str) -> None:
    assert ImageData(pets, image_size=8).class_counts == [22, 14]


# Several labels


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """Return a source of 40 images of three labels, of which some have several and some none."""
    lines = [["sea"], ["sea", "sky"], ["sky"], [], ["sea", "boat"]] * 8
    images = [np.full((8, 8), row, dtype=np.uint8) for row in range(40)]
    names = datasets.ClassLabel(names=["boat", "sea", "sky"])
    features = datasets.Features({"image": datasets.Image(), "tags": datasets.List(names)})
    (tmp_path / "photos").mkdir()
    rows = datasets.Dataset.from_dict({"image": images, "tags": lines}, features=features)
    rows.to_parquet(str(tmp_path / "photos/train.parquet"))
    return str(tmp_path / "photos")


def test_batches_of_several_labels(photos: str) -> None:
    data = ImageData(photos, image_size=8)
    expected = [[0, 1, 0], [0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0]]
    seen = 0
    for split in ("train", "val", "test"):
        for images, labels in data.eval_dataloader(split):
            assert labels.tolist() == [expected[int(row) % 5] for row in images[:, 0, 0, 0]]
            seen += len(labels)
    assert seen == 40
    assert data.class_names == ("boat", "sea", "sky")


def test_splits_of_several_labels_keep_the_rare_ones(photos: str) -> None:
    data = ImageData(photos, image_size=8, test_size=10, val_size=10)
    boats = {split: sum(labels[:, 0].sum() for _, labels in data.eval_dataloader(split)) for split in ("val", "test")}
    assert boats == {"val": 2, "test": 2}


def test_counts_of_several_labels(photos: str) -> None:
    data = ImageData(photos, image_size=8, test_size=10, val_size=10)
    assert data.class_counts == [4, 12, 8]
    assert data.data.multi_label


@pytest.mark.parametrize("balanced", [False, True])
def test_several_labels_go_through_a_fit(photos: str, make_trainer: Any, balanced: bool) -> None:
    data = ImageData(photos, image_size=32, test_size=10, val_size=10)
    loss = ClassBalanced(PickAllLabelsLoss()) if balanced else PickAllLabelsLoss()
    model = ImageClassifier("test_resnet", 3, weights=None, loss=loss)
    trainer = make_trainer()
    trainer.fit(model, datamodule=data)
    assert trainer.callback_metrics["val/loss"].isfinite()
    assert 0 <= trainer.callback_metrics["val/average_precision"] <= 1
