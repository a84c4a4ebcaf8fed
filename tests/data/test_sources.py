import inspect
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from made_up_images import make_rows, write_images, write_parquet
from PIL import Image
from sklearn.datasets import load_digits

from nc_finetune.data._pixels.transforms import DecodeAndResize
from nc_finetune.data.sources import locations
from nc_finetune.data.sources.source import load_source

FAILURE_TO_REACH_HUB = locations._failure_to_reach_hub  # which all tests but those of it are kept from


def grey_values(source: str | Path, split: str = "train") -> list[int]:
    """Return the value of the first pixel of each image, through everything that stands between it and the disk."""
    table = load_source(str(source)).splits[split]
    decode = DecodeAndResize(8)
    return [int(decode(table.encoded(row))[0, 0, 0]) for row in range(len(table.labels))]


# Built-in sets


def test_digits_have_the_pixels_and_labels_of_scikit_learn() -> None:
    digits = load_digits()
    table = load_source("sklearn:digits").splits["train"]
    assert table.labels == digits.target.tolist()
    decode = DecodeAndResize(8, "nearest")
    for row in (0, 1000, 1796):
        expected = (digits.images[row] * 255 / 16).round()
        np.testing.assert_array_equal(decode(table.encoded(row))[0].numpy(), expected)


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setattr(locations, "_digits", inspect.unwrap(locations._digits))  # not those of an earlier test
    with pytest.raises(ImportError, match=r"'sklearn:digits' needs the package 'scikit-learn': .*\[offline\]"):
        load_source("sklearn:digits")


def test_unknown_built_in_set_lists_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown built-in data 'sklearn:digit'; did you mean 'sklearn:digits'\?"):
        load_source("sklearn:digit")


# Folders


@pytest.mark.parametrize("kind", ["parquet", "saved", "saved dict"])
def test_images_and_labels_stay_together(tmp_path: Path, kind: str) -> None:
    rows = make_rows([0, 1, 1, 0])
    if kind == "parquet":
        rows.to_parquet(str(tmp_path / "train.parquet"))
    else:
        saved = rows if kind == "saved" else datasets.DatasetDict({"train": rows, "test": rows})
        saved.save_to_disk(str(tmp_path))
    assert grey_values(tmp_path) == [0, 1, 2, 3]
    assert load_source(str(tmp_path)).splits["train"].labels == [0, 1, 1, 0]


def test_images_of_a_folder_have_the_label_of_their_class(tmp_path: Path) -> None:
    write_images(tmp_path, "dog/1.png", "dog/2.png", value=200)
    write_images(tmp_path, "cat/1.png", value=10)
    source = load_source(str(tmp_path))
    assert grey_values(tmp_path) == [10, 200, 200]
    assert [source.class_names[label] for label in source.splits["train"].labels] == ["cat", "dog", "dog"]


def test_a_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_images(tmp_path, "pets/cat/1.png", "pets/dog/1.png")
    assert load_source("~/pets").class_names == ("cat", "dog")


def test_a_saved_format_does_not_change_what_is_read(tmp_path: Path) -> None:
    rows = make_rows([3, 5, 5], datasets.Value("int64"))
    rows.with_format("numpy").save_to_disk(str(tmp_path))
    assert load_source(str(tmp_path)).class_names == ("3", "5")
    assert grey_values(tmp_path) == [0, 1, 2]


def test_names_of_splits_in_a_saved_dict(tmp_path: Path) -> None:
    rows = {"Training": make_rows([0, 1]), "dev": make_rows([0, 1, 1]), "extra": make_rows([0])}
    datasets.DatasetDict(rows).save_to_disk(str(tmp_path))
    with pytest.warns(UserWarning, match=r"none of train, val and test, and are left out: extra"):
        found = load_source(str(tmp_path)).splits
    assert {split: len(table.labels) for split, table in found.items()} == {"train": 2, "val": 3}


def test_the_only_split_is_train_whatever_its_name(tmp_path: Path) -> None:
    datasets.DatasetDict({"test": make_rows([0, 1, 1])}).save_to_disk(str(tmp_path))
    assert list(load_source(str(tmp_path)).splits) == ["train"]


def test_splits_without_train(tmp_path: Path) -> None:
    datasets.DatasetDict({"test": make_rows([0, 1]), "extra": make_rows([0, 1])}).save_to_disk(str(tmp_path))
    with pytest.raises(ValueError, match=r"no train split, only test, extra; name one of them 'train'"):
        load_source(str(tmp_path))


def test_an_empty_split_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", {"pets": {"train": make_rows([0, 1]), "test": make_rows([])}}.get)
    assert list(load_source("pets").splits) == ["train"]


def test_empty_train_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", {"pets": {"train": make_rows([]), "test": make_rows([0, 1])}}.get)
    with pytest.raises(ValueError, match=r"the train split is empty; it must have images of every class"):
        load_source("pets")


@pytest.mark.parametrize("names", [["cat"], ["cat", "dog"]])
def test_one_class_only(tmp_path: Path, names: list[str]) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 0, 0], datasets.ClassLabel(names=names))
    with pytest.raises(ValueError, match=r"the train split has one class only \('cat'\); there is nothing to classify"):
        load_source(str(tmp_path))


# Columns


def test_columns_are_found_by_what_they_hold(tmp_path: Path) -> None:
    rows = make_rows([0, 1], image="photo", label="animal").add_column("label", ["x", "y"])
    rows.save_to_disk(str(tmp_path))
    assert load_source(str(tmp_path)).class_names == ("cat", "dog")


@pytest.mark.parametrize("name", ["label", "labels", "class", "target"])
def test_labels_that_declare_no_classes_are_found_by_name(tmp_path: Path, name: str) -> None:
    rows = make_rows(["a", "b"], datasets.Value("string"), label=name).add_column("other", ["x", "y"])
    rows.save_to_disk(str(tmp_path))
    assert load_source(str(tmp_path)).class_names == ("a", "b")


def test_columns_that_are_given_are_taken(tmp_path: Path) -> None:
    others = make_rows(["x", "y"], datasets.Value("string"), image="other image", label="breed")
    datasets.concatenate_datasets([make_rows([0, 1]), others], axis=1).save_to_disk(str(tmp_path))
    source = load_source(str(tmp_path), "other image", "breed")
    assert source.splits["train"].image_column == "other image"
    assert source.class_names == ("x", "y")


def test_images_that_are_bytes_without_metadata(tmp_path: Path) -> None:
    # What pandas and pyarrow write: a column of bytes that nothing says to be images.
    rows = make_rows([0, 1], datasets.Value("int64")).cast_column("image", datasets.Image(decode=False))
    encoded = [row["image"]["bytes"] for row in rows]
    datasets.Dataset.from_dict({"png": encoded, "label": [0, 1]}).to_parquet(str(tmp_path / "train.parquet"))
    table = load_source(str(tmp_path), image_column="png").splits["train"]
    assert [table.encoded(row)["bytes"] for row in range(2)] == encoded


@pytest.mark.parametrize("kind", ["image", "label"])
def test_two_columns_that_fit(tmp_path: Path, kind: str) -> None:
    other = make_rows([1, 0]).select_columns(kind).rename_column(kind, "other")
    datasets.concatenate_datasets([make_rows([0, 1]), other], axis=1).save_to_disk(str(tmp_path))
    message = rf"cannot tell the {kind} column among image, label, other; pass {kind}_column="
    with pytest.raises(ValueError, match=message):
        load_source(str(tmp_path))


@pytest.mark.parametrize("kind", ["image", "label"])
def test_no_column_that_fits(tmp_path: Path, kind: str) -> None:
    rows = make_rows([0, 1]).remove_columns(kind)
    rows.add_column("other", [0.5, 1.5]).save_to_disk(str(tmp_path))
    with pytest.raises(ValueError, match=rf"cannot tell the {kind} column among .*other; pass {kind}_column="):
        load_source(str(tmp_path))


@pytest.mark.parametrize("kind", ["image", "label"])
def test_unknown_column(tmp_path: Path, kind: str) -> None:
    make_rows([0, 1]).save_to_disk(str(tmp_path))
    with pytest.raises(ValueError, match=rf"unknown {kind} column 'imagelabel'.* Valid: image, label"):
        load_source(str(tmp_path), **{f"{kind}_column": "imagelabel"})


def test_column_that_holds_no_images(tmp_path: Path) -> None:
    make_rows([0, 1]).save_to_disk(str(tmp_path))
    with pytest.raises(ValueError, match=r"column 'label' must hold images, it holds ClassLabel\(.*pass image_column="):
        load_source(str(tmp_path), image_column="label")


@pytest.mark.parametrize("kind", ["image", "label"])
def test_split_that_lacks_a_column(tmp_path: Path, kind: str) -> None:
    splits = {"train": make_rows([0, 1]), "test": make_rows([0, 1]).rename_column(kind, "other")}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path))
    with pytest.raises(ValueError, match=rf"the test split has no column '{kind}', only .*other"):
        load_source(str(tmp_path))


# What is no folder


@pytest.mark.parametrize("source", ["/missing", "./missing", "../missing", "~/missing", "a/b/c", "my photos", "a/"])
def test_missing_folder(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^no folder of images or tables at '{source}'$"):
        load_source(source)


def test_file_instead_of_a_folder(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1])
    with pytest.raises(NotADirectoryError, match=r"train\.parquet' is a file; give the folder that it is in"):
        load_source(str(tmp_path / "train.parquet"))


def test_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read everything: the refusal is made up.
    write_images(tmp_path, "cat/1.png", "dog/1.png")
    scan = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=r"^no permission to read .*dog; change it or copy the data$"):
        load_source(str(tmp_path))


def test_folder_below_one_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(PermissionError, match=r"^no permission to read .*inside; change it or copy the data$"):
        load_source(str(tmp_path / "inside"))


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: str) -> None:
        raise ConnectionError(f"Couldn't reach '{source}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = (
        r"^'someone/pets' is neither a known name \(sklearn:digits, cifar10, .*\) nor an existing folder, and could not"
        r" be loaded from the hub: Couldn't reach 'someone/pets' on the Hub\nWithout a network: run"
        r" 'hf download --repo-type dataset someone/pets --local-dir DIR' where there is one, and give DIR as source$"
    )
    with pytest.raises(ValueError, match=message):
        load_source("someone/pets")


@pytest.fixture
def closed_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that refuses to be connected to, and a clock by which nobody may wait for it."""

    def wait(seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s")

    monkeypatch.setattr(locations, "_failure_to_reach_hub", FAILURE_TO_REACH_HUB)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", wait)


@pytest.mark.usefixtures("closed_hub")
def test_a_hub_that_does_not_answer_is_asked_once_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    message = r"^'nowhere' is .* from the hub: it cannot be reached \(.*\), and its cache has no such data set\n"
    with pytest.raises(ValueError, match=message):
        load_source("nowhere")
    assert capsys.readouterr().err == "there is no folder 'nowhere' here; asking the hub\n"
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.usefixtures("closed_hub")
def test_a_hub_that_does_not_answer_leaves_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_cache(source: str) -> datasets.DatasetDict:
        assert datasets.config.HF_HUB_OFFLINE
        return datasets.DatasetDict({"train": make_rows([0, 1])})

    monkeypatch.setattr(datasets, "load_dataset", from_cache)
    assert load_source("someone/pets").splits["train"].labels == [0, 1]


def test_hub_data_are_read_like_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = {"someone/pets": datasets.DatasetDict({"train": make_rows([0, 1]), "validation": make_rows([1, 0, 1])})}
    monkeypatch.setattr(datasets, "load_dataset", hub.__getitem__)
    found = load_source("someone/pets").splits
    assert {split: table.labels for split, table in found.items()} == {"train": [0, 1], "val": [1, 0, 1]}


# Fingerprints


def write_table(path: Path, labels: list[int], pixel: int = 0, names: tuple[str, ...] = ("cat", "dog")) -> str:
    """Save a table in which one pixel of the last image can be set; return its fingerprint."""
    images = [np.zeros((8, 8), dtype=np.uint8) for _ in labels]
    images[-1][7, 7] = pixel
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).save_to_disk(str(path))
    return load_source(str(path)).fingerprint()


def test_fingerprint_is_the_same_on_reload_and_in_another_place(tmp_path: Path) -> None:
    assert write_table(tmp_path / "a", [0, 1]) == write_table(tmp_path / "b", [0, 1])


@pytest.mark.parametrize(
    "change", [{"labels": [1, 0, 1]}, {"labels": [0, 1]}, {"pixel": 1}, {"names": ("cat", "cow")}], ids=str
)
def test_fingerprint_changes_with(tmp_path: Path, change: dict[str, Any]) -> None:
    before = write_table(tmp_path / "before", [0, 1, 1])
    assert write_table(tmp_path / "after", **{"labels": [0, 1, 1], **change}) != before


def test_fingerprint_tells_the_splits_apart(tmp_path: Path) -> None:
    two, three = make_rows([0, 1]), make_rows([0, 1, 1])
    fingerprints = set()
    for name in ("validation", "test"):
        datasets.DatasetDict({"train": three, name: two}).save_to_disk(str(tmp_path / name))
        fingerprints.add(load_source(str(tmp_path / name)).fingerprint())
    assert len(fingerprints) == 2


def test_fingerprint_of_a_folder_does_not_depend_on_its_place(tmp_path: Path) -> None:
    for place in ("here", "there"):
        write_images(tmp_path / place, "cat/1.png", "dog/1.png")
    assert load_source(str(tmp_path / "here")).fingerprint() == load_source(str(tmp_path / "there")).fingerprint()


def rewrite(path: Path, position: int = -20) -> None:
    """Write a file anew at the same size and the same time, one byte another."""
    state, content = path.stat(), bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("change", ["another size", "equal size and time", "another class", "one more"])
def test_fingerprint_of_a_folder_changes_with(tmp_path: Path, change: str) -> None:
    write_images(tmp_path, "cat/1.png", "dog/1.png", "dog/3.png")
    before = load_source(str(tmp_path)).fingerprint()
    if change == "another size":
        Image.effect_noise((8, 8), 50).save(tmp_path / "dog/1.png")
    elif change == "equal size and time":
        rewrite(tmp_path / "dog/1.png")
    elif change == "another class":
        (tmp_path / "dog/1.png").rename(tmp_path / "cat/2.png")
    else:
        write_images(tmp_path, "dog/2.png")
    assert load_source(str(tmp_path)).fingerprint() != before


def test_fingerprint_of_a_folder_does_not_depend_on_names_that_change_no_order(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.png", "dog/1.png")
    before = load_source(str(tmp_path)).fingerprint()
    (tmp_path / "dog/1.png").rename(tmp_path / "dog/2.png")
    assert load_source(str(tmp_path)).fingerprint() == before


def test_fingerprint_of_a_table_with_a_row_without_image(tmp_path: Path) -> None:
    rows = make_rows([0, 1])
    images = [rows[0]["image"], None]
    datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features=rows.features).save_to_disk(str(tmp_path))
    assert load_source(str(tmp_path)).fingerprint() == load_source(str(tmp_path)).fingerprint()
