"""Folds of the training images: stratified, of whole groups, of one dataset, and of nothing outside of it."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_images import make_rows, write_images, write_parquet

from nc_finetune import ImageClassifier
from nc_finetune.data import ImageData, TrainingFold, training_folds
from nc_finetune.data.batch_transforms import RandomCropFlip
from nc_finetune.data.splits.folds import held_out_folds
from nc_finetune.errors import DataWarning


def digits(**options: Any) -> ImageData:
    return ImageData("sklearn:digits", num_workers=0, **{"image_size": 16, "samples_per_class": 6, **options})


@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=40),
    st.integers(2, 6),
    st.integers(0, 3),
    st.one_of(st.none(), st.integers(1, 12)),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_held_out_is_taught_by_the_rest(
    labels: list[int], number: int, seed: int, kinds: int | None
) -> None:
    groups = None if kinds is None else [f"g{row * 7 % kinds}" for row in range(len(labels))]
    try:
        folds = held_out_folds(labels, number, seed, groups=groups)
    except ValueError:
        lone = Counter(labels) if groups is None else Counter(label for label, _ in {*zip(labels, groups, strict=True)})
        assert max(lone.values()) == 1 or groups is not None
        return
    rows = [row for fold in folds for row in fold.tolist()]
    assert len(rows) == len({*rows})
    assert len(folds) <= number
    for fold in folds:
        held = set(fold.tolist())
        taught = {label for row, label in enumerate(labels) if row not in held}
        assert held
        assert {labels[row] for row in held} <= taught
        if groups is not None:
            assert not {groups[row] for row in held} & {name for row, name in enumerate(groups) if row not in held}


def test_folds_have_the_shares_of_the_classes_and_depend_on_the_seed_alone() -> None:
    labels = [0] * 30 + [1] * 15 + [2] * 5
    folds = held_out_folds(labels, 5, seed=1)
    assert [Counter(labels[row] for row in fold) for fold in folds] == [Counter({0: 6, 1: 3, 2: 1})] * 5
    assert [fold.tolist() for fold in folds] == [fold.tolist() for fold in held_out_folds(labels, 5, seed=1)]
    assert [fold.tolist() for fold in folds] != [fold.tolist() for fold in held_out_folds(labels, 5, seed=2)]


def test_a_class_of_fewer_images_than_folds_is_left_out_one_by_one() -> None:
    labels = [0] * 20 + [1, 1] + [2]
    folds = held_out_folds(labels, 5, seed=0)
    held = [{labels[row] for row in fold} for fold in folds]
    assert [1 in labels for labels in held].count(True) == 2
    assert not any(2 in labels for labels in held)


def test_several_labels_an_image_keep_one_of_each_for_training() -> None:
    sets = [(0, 1), (0,), (0,), (1,), (0, 2)]
    folds = held_out_folds([1, 0, 0, 1, 2], 3, 0, label_sets=sets)
    assert 4 not in [row for fold in folds for row in fold]  # of the only image with the label 2


@pytest.mark.parametrize(
    ("labels", "groups", "number", "message"),
    [
        ([0, 1, 2], None, 5, "folds need a class with two images at least.*none of the 3 classes"),
        ([0, 0, 1, 1], ["a", "a", "b", "b"], 2, "a class with two groups of images at least"),
        ([0, 0], None, 1, "folds must be at least 2, got 1"),
    ],
)
def test_what_cannot_be_divided_is_refused(labels: list[int], groups: Any, number: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        held_out_folds(labels, number, 0, groups=groups)


def test_folds_are_of_the_training_split_alone() -> None:
    data = digits(val_size=30)
    folds = training_folds(data, 3)
    held = sorted(item for fold in folds for item in fold.held_out)
    assert held == list(range(60))
    assert all(sorted([*fold.held_out, *fold.trained]) == held for fold in folds)
    assert [fold.class_counts for fold in folds] == [[4] * 10] * 3
    with pytest.raises(ValueError, match="unknown split of a fold 'test'"):
        folds[0].eval_dataloader("test")


def seen(loader: Any) -> list[int]:
    return [int(image.long().sum()) for images, _ in loader for image in images]


def test_a_fold_trains_on_some_and_judges_by_the_others() -> None:
    data = digits(batch_size=7)
    fold = training_folds(data, 3)[1]
    sums = [int(image.long().sum()) for image, _ in data.images("train")]
    assert seen(fold.val_dataloader()) == [sums[item] for item in fold.held_out]
    assert seen(fold.eval_dataloader("train")) == [sums[item] for item in fold.trained]
    assert sorted(seen(fold.train_dataloader())) == sorted(sums[item] for item in fold.trained)
    assert len(fold.train_dataloader()) == 6
    assert fold.train_dataloader().dataset.indices == fold.val_dataloader().dataset.indices
    assert fold.identity(fold.val_dataloader().dataset) == data.identity(data.images("train")) is not None


def test_the_training_order_is_that_of_seed_and_epoch() -> None:
    fold = training_folds(digits(), 2)[0]
    torch.manual_seed(3)
    first, second = fold.train_dataloader(), fold.train_dataloader()
    assert [*first.sampler] == [*second.sampler]
    second.sampler.set_epoch(1)
    assert [*first.sampler] != [*second.sampler]


def test_classes_are_balanced_within_a_fold() -> None:
    data = ImageData("sklearn:digits", image_size=8, balance_classes=True, train_share=0.2, num_workers=0)
    fold = training_folds(data, 2)[0]
    loader = fold.train_dataloader()
    assert {*loader.sampler} <= {*fold.trained}


def test_a_fold_is_augmented_as_the_data_are(make_trainer: Any) -> None:
    data = digits(batch_transform=RandomCropFlip(), image_size=32)
    fold = training_folds(data, 2)[0]
    assert fold.deterministic is None
    calls: list[bool] = []
    transform = data.batch_transform
    data.batch_transform = lambda images: (calls.append(True), transform(images))[1]
    make_trainer(limit_train_batches=1).fit(ImageClassifier("test_resnet", 10, weights=None), datamodule=fold)
    assert calls == [True]


def test_groups_never_straddle_folds(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for animal in range(6):
            write_images(tmp_path / label, *(f"{label}{animal}_{shot}.png" for shot in range(3)), value=animal)
    data = ImageData(str(tmp_path), image_size=8, group=r"^([a-z]+\d)_", val_size=0, test_size=6, num_workers=0)
    folds, groups = training_folds(data, 3), data.train_groups
    assert groups is not None
    for fold in folds:
        assert not {groups[item] for item in fold.held_out} & {groups[item] for item in fold.trained}
    assert sum(len(fold.held_out) for fold in folds) == len(data.train_set)


def test_it_is_said_where_folds_are_fewer_or_images_stay_out(tmp_path: Path) -> None:
    write_images(tmp_path / "train", "cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png", "eel/1.png", "eel/2.png")
    write_images(tmp_path / "test", "cat/9.png")
    data = ImageData(str(tmp_path), image_size=8, val_size=0)
    with pytest.warns(DataWarning, match=r"1 of 6 training images are held out in none of them"):
        folds = training_folds(data, 4)
    assert len(folds) >= 2


@pytest.mark.parametrize("held_out", [[], range(60), [-1], [60]])
def test_a_fold_of_nothing_or_of_everything_is_refused(held_out: Any) -> None:
    with pytest.raises(ValueError, match="some of the 60 training images are held out, and some not"):
        TrainingFold(digits(), list(held_out))


# No validation split


def test_a_validation_split_may_be_empty_and_all_images_train() -> None:
    whole, held = (ImageData("sklearn:digits", image_size=8, val_size=size) for size in (0, None))
    assert (len(whole.train_set), len(whole.val_set)) == (len(held.train_set) + len(held.val_set), 0)
    assert whole.summary.absent_classes == {}
    assert [*whole.val_dataloader()] == []


def test_the_sample_is_the_same_without_validation_images() -> None:
    samples = [digits(val_size=size) for size in (0, 40, None)]
    assert len({tuple(data.train_set.indices) for data in samples}) == 1
    assert len({tuple(data.test_set.indices) for data in samples}) == 1


def test_all_images_of_a_class_may_be_asked_for_without_validation(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 4)
    write_parquet(tmp_path / "test.parquet", [0, 1])
    data = ImageData(str(tmp_path), image_size=8, samples_per_class=4, val_size=0)
    assert (len(data.train_set), len(data.val_set)) == (8, 0)
    with pytest.raises(ValueError, match="the val split is empty"):
        _ = ImageData(str(tmp_path), image_size=8, samples_per_class=4).val_set


def test_an_empty_validation_split_is_kept_in_a_file(tmp_path: Path) -> None:
    file = str(tmp_path / "splits.json")
    first, second = (digits(val_size=0, split_file=file) for _ in range(2))
    assert first.splits_hash == second.splits_hash
    assert len(second.val_set) == 0


def test_a_fit_without_validation_images_trains(make_trainer: Any) -> None:
    trainer = make_trainer()
    trainer.fit(ImageClassifier("test_resnet", 10, weights=None), datamodule=digits(val_size=0, image_size=32))
    assert "train/loss" in trainer.callback_metrics
    assert "val/loss" not in trainer.callback_metrics


def test_without_validation_the_images_of_the_validation_split_join_the_training_images(tmp_path: Path) -> None:
    for split, labels in (("train", [0, 1] * 4), ("validation", [0, 1, 1]), ("test", [0, 1])):
        write_parquet(tmp_path / f"{split}.parquet", labels)
    apart, joined = (ImageData(str(tmp_path), image_size=8, val_size=size) for size in (None, 0))
    assert [len(apart.images(split)) for split in ("train", "val", "test")] == [8, 3, 2]
    assert [len(joined.images(split)) for split in ("train", "val", "test")] == [11, 0, 2]
    assert joined.train_set.labels == [*apart.train_set.labels, *apart.val_set.labels]
    pixels = torch.stack([image for image, _ in joined.train_set])
    assert torch.equal(pixels[8:], torch.stack([image for image, _ in apart.val_set]))
    assert joined.fingerprint != apart.fingerprint


def test_columns_that_both_splits_have_stay_when_they_join(tmp_path: Path) -> None:
    make_rows([0, 1] * 4).add_column("person", list("aabbccdd")).to_parquet(str(tmp_path / "train.parquet"))
    rows = make_rows([0, 1] * 2).add_column("person", list("eeff")).add_column("more", [1] * 4)
    rows.to_parquet(str(tmp_path / "validation.parquet"))
    data = ImageData(str(tmp_path), image_size=8, val_size=0, test_size=0, group="person")
    assert data.train_groups == list("aabbccddeeff")


def test_all_images_may_be_for_training() -> None:
    data = digits(samples_per_class=None, val_size=0, test_size=0)
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (1797, 0, 0)
    assert [*data.test_dataloader()] == []


@pytest.mark.parametrize("name", ["val_size", "test_size"])
@pytest.mark.parametrize("size", [-1, 1.5])
def test_sizes_out_of_range_are_refused(name: str, size: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a share in .* or 0 for none, got {size}"):
        digits(**{name: size})
