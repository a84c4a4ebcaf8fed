import io
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from made_up_images import make_rows, write_images, write_parquet
from PIL import Image
from torch import Tensor

from nc_finetune.data import ImageData, LabelledImages

SPLITS = ("train", "val", "test")


@pytest.fixture
def pets(tmp_path: Path) -> str:
    """Return a source of 30 cats and 20 dogs in which image i has the grey value i."""
    write_parquet(tmp_path / "pets/train.parquet", [0] * 30 + [1] * 20)
    return str(tmp_path / "pets")


@pytest.fixture
def pets_with_splits(tmp_path: Path) -> str:
    """Return a source that brings 8, 4 and 2 images for training, validation and testing."""
    for split, number in (("train", 4), ("val", 2), ("test", 1)):
        write_parquet(tmp_path / f"pets/{split}.parquet", [0, 1] * number)
    return str(tmp_path / "pets")


def rows_of(images: LabelledImages) -> list[int]:
    """Return the rows of the source: by them the made-up images are told apart."""
    return [int(images[item][0][0, 0, 0]) for item in range(len(images))]


def rows_by_split(data: ImageData) -> dict[str, list[int]]:
    return {split: rows_of(getattr(data, f"{split}_set")) for split in SPLITS}


def small(source: str, **options: Any) -> ImageData:
    return ImageData(source, **{"image_size": 8, **options})


# Splits


@pytest.mark.parametrize("options", [{}, {"samples_per_class": 7}, {"val_size": 11}, {"test_size": 0.5}], ids=str)
def test_splits_are_disjoint_and_complete(pets: str, options: dict[str, Any]) -> None:
    rows = rows_by_split(small(pets, **options))
    assert sorted(row for split in SPLITS for row in rows[split]) == list(range(50))


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, {"train": (22, 14), "val": (2, 2), "test": (6, 4)}),
        ({"test_size": 20, "val_size": 0.5}, {"train": (9, 6), "val": (9, 6), "test": (12, 8)}),
        ({"samples_per_class": 7}, {"train": (7, 7), "val": (17, 9), "test": (6, 4)}),
        ({"samples_per_class": 8, "val_size": 0.5}, {"train": (8, 8), "val": (8, 4), "test": (6, 4)}),
        ({"samples_per_class": 8, "val_size": 6}, {"train": (8, 8), "val": (4, 2), "test": (6, 4)}),
        ({"samples_per_class": 8, "val_size": 24}, {"train": (8, 8), "val": (16, 8), "test": (6, 4)}),
    ],
    ids=str,
)
def test_splits_are_stratified(pets: str, options: dict[str, Any], sizes: dict[str, tuple[int, int]]) -> None:
    data = small(pets, **options)
    counts = {split: Counter(getattr(data, f"{split}_set").labels) for split in SPLITS}
    assert {split: (count[0], count[1]) for split, count in counts.items()} == sizes


@pytest.mark.parametrize("samples_per_class", [None, 7])
def test_splits_are_the_same_every_time(pets: str, samples_per_class: int | None) -> None:
    first, second = (rows_by_split(small(pets, samples_per_class=samples_per_class, seed=3)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("samples_per_class", [None, 7])
def test_the_seed_changes_training_and_validation_alone(pets: str, samples_per_class: int | None) -> None:
    first, second = (rows_by_split(small(pets, samples_per_class=samples_per_class, seed=seed)) for seed in (0, 1))
    assert [split for split in SPLITS if first[split] != second[split]] == ["train", "val"]


def test_splits_of_the_source_are_kept(pets_with_splits: str) -> None:
    data = small(pets_with_splits, seed=5)
    assert [len(images) for images in (data.train_set, data.val_set, data.test_set)] == [8, 4, 2]


def test_a_sample_leaves_the_splits_of_the_source_alone(pets_with_splits: str) -> None:
    data = small(pets_with_splits, samples_per_class=4)
    assert [len(images) for images in (data.train_set, data.val_set, data.test_set)] == [8, 4, 2]


@pytest.mark.parametrize("present", ["val", "test"])
def test_only_the_split_that_lacks_is_taken_from_train(tmp_path: Path, present: str) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 20)
    write_parquet(tmp_path / f"{present}.parquet", [0, 1] * 3)
    data = small(str(tmp_path), val_size=10, test_size=10)
    assert {split: len(getattr(data, f"{split}_set")) for split in SPLITS} == {
        "train": 30,
        "val": 10,
        "test": 10,
        present: 6,
    }


def test_splits_are_planned_once(pets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small(pets)
    _ = data.train_set
    monkeypatch.setattr("nc_finetune.data.splits.plan.split_off", None)
    assert len(data.test_set) == 10


# What cannot be split


def test_too_few_images_name_the_class_and_the_argument(pets: str) -> None:
    message = r"^samples_per_class: 20 images a class were asked for, class 'dog' has 16; ask for fewer$"
    with pytest.raises(ValueError, match=message):
        _ = small(pets, samples_per_class=20).train_set


def test_a_sample_that_leaves_no_validation_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 5)
    data = small(str(tmp_path), samples_per_class=4, test_size=2)
    with pytest.raises(ValueError, match=r"^samples_per_class=4 takes all images, so the val split is empty; ask for"):
        _ = data.val_set


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_size": 40}, r"^val_size: cannot split 40 of 40 images off"),
        ({"samples_per_class": 8, "val_size": 25}, r"^val_size: cannot split 25 of 24 images off"),
        ({"test_size": 0.001}, r"^test_size: cannot split 0\.001 of 50 images off"),
        ({"test_size": 50}, r"^test_size: cannot split 50 of 50 images off"),
    ],
    ids=str,
)
def test_a_size_that_leaves_a_split_empty_is_named(pets: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = small(pets, **options).train_set


def test_test_images_can_be_few_the_same_for_every_seed_and_stratified(tmp_path: Path) -> None:
    for split, number in (("train", 5), ("test", 10)):
        write_parquet(tmp_path / f"{split}.parquet", [0, 1] * number)
    few = [small(str(tmp_path), max_test_images=6, seed=seed).test_set for seed in (0, 1)]
    assert rows_of(few[0]) == rows_of(few[1])
    assert Counter(few[0].labels) == {0: 3, 1: 3}
    assert len(small(str(tmp_path), max_test_images=99).test_set) == 20
    with pytest.raises(ValueError, match="max_test_images must be at least 1, got 0"):
        small(str(tmp_path), max_test_images=0)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, size) for name in ("val_size", "test_size") for size in (-0.1, -3, 1.5, float("nan"), float("inf"))),
    ],
)
def test_sizes_out_of_range_are_refused_at_once(name: str, size: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a share in \(0, 1\) or a number of .* got {size}$"):
        ImageData("never looked at", **{name: size})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["image_size", "batch_size", "samples_per_class"])
def test_numbers_below_one_are_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be at least 1, got 0$"):
        ImageData("never looked at", **{name: 0})  # type: ignore[arg-type]


def test_unknown_interpolation() -> None:
    with pytest.raises(
        ValueError, match=r"unknown interpolation 'cubic'; did you mean 'bicubic'\? Valid: bicubic, bilin"
    ):
        ImageData("never looked at", interpolation="cubic")


def test_unknown_split(pets: str) -> None:
    with pytest.raises(ValueError, match=r"unknown split 'tset'; did you mean 'test'\? Valid: train, val, test"):
        small(pets).eval_dataloader("tset")


@pytest.mark.parametrize(("given", "expected"), [("200", 200), ("0.2", 0.2)])
def test_a_number_on_the_command_line_is_no_share(given: str, expected: float) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(ImageData, "data")
    config = parser.parse_args(["--data.source=x", f"--data.val_size={given}", f"--data.test_size={given}"])
    data = parser.instantiate(config).data
    assert (data.plan.val_size, data.plan.test_size) == (expected, expected)
    assert (type(data.plan.val_size), type(data.plan.test_size)) == (type(expected), type(expected))


# Batches


def test_batches_hold_uint8_images_and_int64_labels(pets: str) -> None:
    images, labels = next(iter(small(pets, image_size=12, batch_size=5).val_dataloader()))
    assert (images.shape, images.dtype) == ((4, 3, 12, 12), torch.uint8)
    assert (labels.shape, labels.dtype) == ((4,), torch.int64)


@pytest.mark.parametrize("split", SPLITS)
def test_evaluation_goes_through_a_split_in_its_order(pets: str, split: str) -> None:
    data = small(pets, batch_size=4)
    batches = list(data.eval_dataloader(split))
    expected: LabelledImages = getattr(data, f"{split}_set")
    assert torch.cat([images[:, 0, 0, 0] for images, _ in batches]).tolist() == rows_of(expected)
    assert torch.cat([labels for _, labels in batches]).tolist() == expected.labels


@pytest.mark.parametrize(("loader", "split"), [("val", "val"), ("test", "test"), ("predict", "test")])
def test_loaders_of_lightning_are_those_of_evaluation(pets: str, loader: str, split: str) -> None:
    data = small(pets)
    found = torch.cat([images for images, _ in getattr(data, f"{loader}_dataloader")()])
    assert found[:, 0, 0, 0].tolist() == rows_of(getattr(data, f"{split}_set"))


def test_training_batches_are_shuffled_and_complete(pets: str) -> None:
    data = small(pets, batch_size=5)
    loader = data.train_dataloader()
    rows = torch.cat([images[:, 0, 0, 0] for images, _ in loader]).tolist()
    assert rows != rows_of(data.train_set)
    assert sorted(rows) == rows_of(data.train_set)


def blacken(image: Tensor) -> Tensor:
    return torch.zeros_like(image)


def test_augmentation_is_for_training_alone(pets: str) -> None:
    data = small(pets, transform=blacken)
    loaders = {"training": data.train_dataloader(), **{split: data.eval_dataloader(split) for split in SPLITS}}
    black = {name: not any(images.any() for images, _ in loader) for name, loader in loaders.items()}
    assert black == {"training": True, "train": False, "val": False, "test": False}


def test_a_worker_process_loads_the_same_batches(pets: str) -> None:
    alone, worker = (list(small(pets, num_workers=number).val_dataloader()) for number in (0, 1))
    torch.testing.assert_close(worker, alone, rtol=0, atol=0)


def test_a_split_survives_pickling(pets: str) -> None:
    # Worker processes that are spawned, as on macOS and Windows, get their images this way.
    images = small(pets, transform=blacken).train_set
    copy = pickle.loads(pickle.dumps(images))  # noqa: S301
    assert copy.labels == images.labels
    torch.testing.assert_close(copy[3], images[3])


# The data behind


def test_digits() -> None:
    data = small("sklearn:digits")
    assert data.class_names == tuple("0123456789")
    assert data.num_classes == 10
    assert data.test_set[0][0].shape == (3, 8, 8)


def test_folder_of_images(tmp_path: Path) -> None:
    for split in SPLITS:
        write_images(tmp_path, f"{split}/dog/1.PNG", f"{split}/dog/more/2.png", value=200)
        write_images(tmp_path, f"{split}/[a]*/1.png", value=100)
    data = small(str(tmp_path))
    for split in SPLITS:
        images, labels = next(iter(data.eval_dataloader(split)))
        assert [data.class_names[label] for label in labels] == ["[a]*", "dog", "dog"]
        assert images[:, 0, 0, 0].tolist() == [100, 200, 200]


def test_single_folder_of_images_is_split(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(10)))
    data = small(str(tmp_path), test_size=4, val_size=2)
    assert {split: len(getattr(data, f"{split}_set")) for split in SPLITS} == {"train": 14, "val": 2, "test": 4}


def test_columns_are_passed_on(tmp_path: Path) -> None:
    others = make_rows(["x", "y", "z"] * 4, datasets.Value("string"), image="photo", label="breed")
    datasets.concatenate_datasets([make_rows([0, 1, 1] * 4), others], axis=1).save_to_disk(str(tmp_path))
    data = small(str(tmp_path), image_column="photo", label_column="breed", test_size=3, val_size=3)
    assert data.class_names == ("x", "y", "z")
    assert len(data.train_set) == 6


def test_nothing_is_loaded_before_it_is_asked_for(tmp_path: Path) -> None:
    data = small(str(tmp_path / "pets"))
    write_parquet(tmp_path / "pets/train.parquet", [0, 1])
    data.prepare_data()
    assert data.num_classes == 2


def test_preparing_loads_the_source(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        small(str(tmp_path / "missing")).prepare_data()


@pytest.mark.parametrize("change", ["nothing", "one pixel", "one label"])
def test_fingerprint(tmp_path: Path, change: str) -> None:
    labels = [0] * 5 + [1] * 5
    write_parquet(tmp_path / "before/train.parquet", labels)
    before = small(str(tmp_path / "before")).fingerprint
    if change == "one label":
        labels[0] = 1
    rows = make_rows(labels)
    if change == "one pixel":
        image = np.array(rows[7]["image"])
        image[3, 3] += 1
        features = rows.features
        images = [image if row == 7 else value for row, value in enumerate(rows["image"])]
        rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    (tmp_path / "after").mkdir()
    rows.to_parquet(str(tmp_path / "after/train.parquet"))
    assert (small(str(tmp_path / "after")).fingerprint == before) == (change == "nothing")


def test_fingerprint_does_not_depend_on_how_the_data_are_split(pets: str) -> None:
    assert small(pets).fingerprint == small(pets, seed=1, samples_per_class=3, image_size=4).fingerprint


def test_interpolation_is_passed_on() -> None:
    options = [{"image_size": 16, "interpolation": name} for name in ("nearest", "bicubic")]
    shown = [small("sklearn:digits", **chosen).test_set[0][0] for chosen in options]
    assert not torch.equal(*shown)


# Images that do not decode


def test_file_that_does_not_decode_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(5)))
    broken = tmp_path / "dog/3.png"
    broken.write_bytes(b"no image")
    data = small(str(tmp_path), test_size=2, val_size=2)
    images = LabelledImages(data.data.splits["train"], None, data.train_set.decode)
    with pytest.raises(
        ValueError,
        match=rf"^the image {broken} in row 8 does not decode: .+; repair or remove it, or leave it out by",
    ):
        images[8]


@pytest.mark.parametrize("content", [None, b"no image", b"truncated"])
def test_row_that_does_not_decode_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content == b"truncated":
        file = io.BytesIO()
        Image.effect_noise((64, 64), 50).save(file, "PNG")
        content = file.getvalue()[:1000]
    rows = make_rows([0, 1, 1])
    images = [*rows.cast_column("image", datasets.Image(decode=False))["image"]]
    images[1] = None if content is None else {"bytes": content, "path": None}
    datasets.Dataset.from_dict({"image": images, "label": [0, 1, 1]}, features=rows.features).save_to_disk(
        str(tmp_path)
    )
    data = small(str(tmp_path))
    table = LabelledImages(data.data.splits["train"], None, small("sklearn:digits").test_set.decode)
    with pytest.raises(
        ValueError,
        match=r"^the image in row 1 does not decode: .+; repair or remove it, or leave it out by on_bad_image='skip'",
    ):
        table[1]


def test_the_other_images_of_a_damaged_table_are_read(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.png", "dog/1.png", "dog/2.png", value=9)
    (tmp_path / "dog/1.png").write_bytes(b"")
    decode = small("sklearn:digits").test_set.decode
    images = LabelledImages(small(str(tmp_path)).data.splits["train"], np.array([0, 2]), decode)
    assert [(int(image.max()), label) for image, label in (images[0], images[1])] == [(9, 0), (9, 1)]


def test_a_share_of_the_training_split_is_stratified_and_keeps_val_and_test() -> None:
    whole, tenth = ImageData("sklearn:digits"), ImageData("sklearn:digits", train_share=0.1)
    assert len(tenth.train_set) == round(0.1 * len(whole.train_set))
    assert {tenth.train_set.labels.count(label) for label in range(10)} <= {12, 13, 14}
    for split in ("val_set", "test_set"):
        assert np.array_equal(getattr(tenth, split).indices, getattr(whole, split).indices)
