import contextlib
import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from made_up_images import make_rows, write_images, write_parquet
from PIL import Image

from nc_finetune.data._pixels.transforms import DecodeAndResize
from nc_finetune.data.columns.split_names import by_split
from nc_finetune.data.sources.folders import read_folder, visible_files
from nc_finetune.data.sources.source import load_source


def sizes(found: dict[str, Any]) -> dict[str, int]:
    return {split: len(rows) for split, rows in found.items()}


def classes(rows: Any) -> dict[str, int]:
    """Count the rows of each class by its name."""
    return dict(Counter(rows.features["label"].int2str(label) for label in rows["label"]))


def test_two_names_of_one_split_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'val' and 'validation' both name the val split; rename or remove one"):
        by_split(["train", "val", "validation"])


# Tables


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.parquet", "train"),
        ("train-00000-of-00001.parquet", "train"),
        ("training_0.parquet", "train"),
        ("test-00000-of-00001.parquet", "test"),
        ("test_0.parquet", "test"),
        ("mnist-test.parquet", "test"),
        ("TEST.PARQUET", "test"),
        ("validation-00000-of-00001.parquet", "val"),
        ("dev.parquet", "val"),
        ("test/0000.parquet", "test"),
        ("default/validation/0000.parquet", "val"),
        ("partial-train/0000.parquet", "train"),
        ("train/latest.parquet", "train"),
        ("test/train.parquet", "train"),
    ],
)
def test_split_of_a_table(tmp_path: Path, name: str, split: str) -> None:
    # Beside two others: a split that is alone cannot show whether its name was read.
    others = {"train": "a-train", "val": "a-val", "test": "a-test"}
    write_parquet(tmp_path / name, [0, 1, 0, 1, 0])
    for other in others.values():
        write_parquet(tmp_path / f"{other}.parquet", [0, 1])
    assert sizes(read_folder(tmp_path)) == {**dict.fromkeys(others, 2), split: 7}


def test_tables_that_name_no_split_are_train(tmp_path: Path) -> None:
    write_parquet(tmp_path / "part-0.parquet", [0, 1])
    write_parquet(tmp_path / "part-1.parquet", [0, 1, 1])
    assert sizes(read_folder(tmp_path)) == {"train": 5}


def test_a_table_that_names_no_split_beside_one_that_does_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1])
    write_parquet(tmp_path / "extra.parquet", [0, 1])
    with pytest.raises(ValueError, match=r"cannot tell the split of .*extra\.parquet beside files that name theirs"):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["a[b]", "a*b", "a?b", "a b", "ünï"])
def test_tables_in_folders_with_odd_names(tmp_path: Path, name: str) -> None:
    write_parquet(tmp_path / name / "train.parquet", [0, 1])
    assert sizes(read_folder(tmp_path / name)) == {"train": 2}


def test_hidden_tables_are_left_out(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1])
    write_parquet(tmp_path / ".cache/test.parquet", [0, 1])
    write_parquet(tmp_path / ".test.parquet", [0, 1])
    assert sizes(read_folder(tmp_path)) == {"train": 2}


def test_arrow_file(tmp_path: Path) -> None:
    make_rows([0, 1, 1]).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "arrow").mkdir()
    (tmp_path / "saved/data-00000-of-00001.arrow").rename(tmp_path / "arrow/test.arrow")
    make_rows([0, 1]).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved/data-00000-of-00001.arrow").rename(tmp_path / "arrow/train.arrow")
    assert sizes(read_folder(tmp_path / "arrow")) == {"train": 2, "test": 3}


def test_two_kinds_of_tables_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1])
    (tmp_path / "test.arrow").touch()
    with pytest.raises(ValueError, match=r"holds arrow and parquet files; keep one kind"):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["train.parquet", "train.arrow", "state.json", "dataset_dict.json"])
def test_damaged_tables(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("not what it says")
    with pytest.raises(
        ValueError, match=r"^the tables in .* cannot be read: .+; replace those that are damaged or empty$"
    ):
        read_folder(tmp_path)


@pytest.mark.parametrize("kind", ["parquet", "saved dict"])
def test_table_without_rows(tmp_path: Path, kind: str) -> None:
    # HF datasets writes such splits, but does not read them.
    if kind == "parquet":
        write_parquet(tmp_path / "train.parquet", [])
        write_parquet(tmp_path / "test.parquet", [0, 1])
    else:
        datasets.DatasetDict({"train": make_rows([]), "test": make_rows([0, 1])}).save_to_disk(str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot be read: .+; replace those that are damaged or empty$"):
        read_folder(tmp_path)


def test_a_shard_without_labels_is_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [0, 1])
    make_rows([0, 1]).remove_columns("label").to_parquet(str(tmp_path / "train-1.parquet"))
    with pytest.warns(UserWarning, match=r"2 of the 4 images of the train split have no label"):
        assert load_source(str(tmp_path)).splits["train"].labels == [0, 1]


def test_saved_dataset_is_train(tmp_path: Path) -> None:
    make_rows([0, 1, 1]).save_to_disk(str(tmp_path))
    assert sizes(read_folder(tmp_path)) == {"train": 3}


def test_saved_dataset_dict_keeps_its_splits(tmp_path: Path) -> None:
    saved = {"train": make_rows([0, 1, 1]), "validation": make_rows([0, 1])}
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path))
    assert sizes(read_folder(tmp_path)) == {"train": 3, "validation": 2}


# Images


def test_one_folder_a_class(tmp_path: Path) -> None:
    write_images(tmp_path, "dog/1.png", "cat/1.png", "cat/2.png")
    found = read_folder(tmp_path)
    assert {split: classes(rows) for split, rows in found.items()} == {"train": {"cat": 2, "dog": 1}}


def test_folders_of_splits(tmp_path: Path) -> None:
    write_images(tmp_path, "train/cat/1.png", "train/dog/1.png", "Valid/dog/1.png", "Valid/cat/1.png")
    write_images(tmp_path, "testing/cat/1.png", "testing/cat/2.png", "testing/dog/1.png")
    found = {split: classes(rows) for split, rows in read_folder(tmp_path).items()}
    assert found == {"train": {"cat": 1, "dog": 1}, "val": {"cat": 1, "dog": 1}, "test": {"cat": 2, "dog": 1}}


@pytest.mark.parametrize("lacking", ["train", "test"])
def test_a_class_that_a_split_lacks_does_not_move_the_labels(tmp_path: Path, lacking: str) -> None:
    write_images(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "test") for name in ("ape", "bee", "cat")))
    (tmp_path / lacking / "ape/1.png").unlink()
    (tmp_path / lacking / "ape").rmdir()
    found = {split: classes(rows) for split, rows in read_folder(tmp_path).items()}
    present = {"bee": 1, "cat": 1}
    assert found == {"train": {"ape": 1, **present}, "test": {"ape": 1, **present}, lacking: present}


def test_folders_without_images_are_no_classes(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.png", "dog/1.png", ".cache/1.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/1.xml").touch()
    assert read_folder(tmp_path)["train"].features["label"].names == ["cat", "dog"]


def test_hidden_images_are_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.png", "dog/1.png", "dog/._1.png", "dog/.thumbnails/1.png")
    assert classes(read_folder(tmp_path)["train"]) == {"cat": 1, "dog": 1}


def test_images_in_folders_below_a_class(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.png", "cat/more/even more/1.png", "dog/only/1.png")
    assert classes(read_folder(tmp_path)["train"]) == {"cat": 2, "dog": 1}


def test_images_beside_the_folders_of_classes_are_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, "train/cat/1.png", "train/dog/1.png", "train/overview.png", "overview.png")
    assert classes(read_folder(tmp_path)["train"]) == {"cat": 1, "dog": 1}


def test_class_names_with_odd_characters(tmp_path: Path) -> None:
    names = ["[a]*", "?", "two words", "ünï-1.0", "{}"]
    write_images(tmp_path, *(f"{name}/1.png" for name in names))
    assert classes(read_folder(tmp_path)["train"]) == dict.fromkeys(names, 1)


def test_upper_case_extensions(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.PNG", "cat/2.JPEG", "dog/1.Jpg")
    assert classes(read_folder(tmp_path)["train"]) == {"cat": 2, "dog": 1}


def test_other_files_are_no_images(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "cat/notes.txt").touch()
    assert classes(read_folder(tmp_path)["train"]) == {"cat": 1, "dog": 1}


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    write_images(tmp_path, "elsewhere/1.png", "data/cat/1.png")
    (tmp_path / "data/dog").symlink_to(tmp_path / "elsewhere")
    assert classes(read_folder(tmp_path / "data")["train"]) == {"cat": 1, "dog": 1}


def test_the_order_of_the_rows_does_not_depend_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Splits hash the number of a row.
    write_images(tmp_path, *(f"{name}/{number}.png" for name in ("cat", "dog", "owl") for number in range(5)))
    walk = os.walk

    def backwards(*args: Any, **options: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for parent, children, files in walk(*args, **options):
            children.sort(reverse=True)
            yield parent, children, sorted(files, reverse=True)

    expected = read_folder(tmp_path)["train"].data.to_pydict()
    monkeypatch.setattr("os.walk", backwards)
    assert read_folder(tmp_path)["train"].data.to_pydict() == expected


@pytest.mark.parametrize("images", [["train/1.png"], ["train/1.png", "train/more/1.png"], ["test/1.png"]])
def test_a_class_may_be_called_like_a_split(tmp_path: Path, images: list[str]) -> None:
    write_images(tmp_path, "bus/1.png", "car/1.png", *images)
    found = read_folder(tmp_path)
    assert {split: classes(rows) for split, rows in found.items()} == {
        "train": {"bus": 1, "car": 1, images[0].split("/")[0]: len(images)}
    }


def test_two_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    write_images(tmp_path, "bus/1.png", "train/1.png", "test/1.png")
    found = {split: classes(rows) for split, rows in read_folder(tmp_path).items()}
    assert found == {"train": {"bus": 1, "test": 1, "train": 1}}


def test_folders_without_images_beside_a_train_folder_do_not_make_it_a_class(tmp_path: Path) -> None:
    write_images(tmp_path, "train/cat/1.png", "train/dog/1.png", "overview.png")
    (tmp_path / "annotations").mkdir()
    assert classes(read_folder(tmp_path)["train"]) == {"cat": 1, "dog": 1}


def test_folders_of_other_images_beside_splits_are_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "old photos/1.png")
    found = {split: classes(rows) for split, rows in read_folder(tmp_path).items()}
    assert found == {"train": {"cat": 1, "dog": 1}, "test": {"cat": 1}}


def test_splits_without_folders_of_classes_are_not_taken_for_classes(tmp_path: Path) -> None:
    write_images(tmp_path, "train/1.png", "test/1.png")
    with pytest.raises(
        ValueError, match=r"no images in the folders of .*train; expected one folder a class with \.jpg"
    ):
        read_folder(tmp_path)


@pytest.mark.parametrize("lacking", ["train", "test"])
def test_a_split_without_images_is_named(tmp_path: Path, lacking: str) -> None:
    write_images(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "test") for name in ("cat", "dog")))
    for name in ("cat", "dog"):
        (tmp_path / lacking / name / "1.png").unlink()
    with pytest.raises(ValueError, match=rf"no images in the folders of .*{lacking}; expected one folder a class"):
        read_folder(tmp_path)


def test_images_without_a_train_split(tmp_path: Path) -> None:
    write_images(tmp_path, "val/cat/1.png", "test/cat/1.png", "test/dog/1.png")
    with pytest.raises(ValueError, match=r"has no train split, only val, test; name one of them 'train'"):
        read_folder(tmp_path)


@pytest.mark.parametrize("files", [[], ["cat/notes.txt"], ["1.png", "2.png"]])
def test_folder_without_folders_of_images(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"holds no parquet or arrow files and no folders of images; expected one"):
        read_folder(tmp_path)


# Archives


def write_archive(path: Path, labels: list[int]) -> None:
    """Write a webdataset shard in which image i has the grey value i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, label in enumerate(labels):
            image = io.BytesIO()
            Image.new("L", (8, 8), number).save(image, "PNG")
            for ending, content in (("png", image.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{number:04}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def test_webdataset_archives(tmp_path: Path) -> None:
    write_archive(tmp_path / "train-0000.tar", [0, 1])
    write_archive(tmp_path / "train-0001.tar", [1, 1, 0])
    write_archive(tmp_path / "test-0000.tar", [1, 0])
    source = load_source(str(tmp_path))
    assert {name: table.labels for name, table in source.splits.items()} == {"train": [0, 1, 1, 1, 0], "test": [1, 0]}
    decode = DecodeAndResize(8)
    assert [int(decode(source.splits["train"].encoded(row)).max()) for row in range(5)] == [0, 1, 0, 1, 2]


def test_names_in_an_archive_write_nothing(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for name, content in (("../../escaped.cls", b"1"), ("../../escaped.png", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with contextlib.suppress(ValueError):
        load_source(str(tmp_path))
    assert not list(tmp_path.parent.rglob("escaped*"))


def test_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"the tables in .* cannot be read: .+; replace those that are damaged"):
        read_folder(tmp_path)


def test_a_link_to_the_folder_that_it_is_in_is_not_followed(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "cat/round").symlink_to(tmp_path)
    assert [str(path) for path in visible_files(tmp_path)] == ["cat/1.png", "dog/1.png"]
