"""What a source says itself of its splits is never overruled: an image that it holds out is not trained on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from crossed import crossed
from made_up_images import make_rows, write_images, write_parquet

from nc_finetune.data.sources.source import load_source
from nc_finetune.data.sources.tables import Source

NAMES = [f"{number}.png" for number in range(8)]
LABELS = ["cat", "dog"] * 4
STRING = datasets.Value("string")
# How a table writes train, train, train, train, val, val, test, test.
PINNED = {"train": 4, "val": 2, "test": 2}


def sizes(source: Source) -> dict[str, int]:
    return {split: len(table.labels) for split, table in source.splits.items()}


def csv_table(folder: Path, column: str, cells: list[Any]) -> str:
    write_images(folder, *NAMES)
    lines = [f"{name},{label},{cell}" for name, label, cell in zip(NAMES, LABELS, cells, strict=True)]
    (folder / "labels.csv").write_text("\n".join([f"file_name,label,{column}", *lines]) + "\n")
    return str(folder)


def jsonl_table(folder: Path, column: str, cells: list[Any]) -> str:
    write_images(folder, *NAMES)
    rows = [
        {"file_name": name, "label": label, column: cell}
        for name, label, cell in zip(NAMES, LABELS, cells, strict=True)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(folder)


def parquet_table(folder: Path, column: str, cells: list[Any]) -> str:
    make_rows(LABELS, STRING).add_column(column, cells).to_parquet(str(folder / "all.parquet"))
    return str(folder)


def saved_table(folder: Path, column: str, cells: list[Any]) -> str:
    make_rows(LABELS, STRING).add_column(column, cells).save_to_disk(str(folder))
    return str(folder)


KINDS = {"csv": csv_table, "jsonl": jsonl_table, "parquet": parquet_table, "saved": saved_table}
every_kind = pytest.mark.parametrize("write", KINDS.values(), ids=KINDS)


@pytest.mark.parametrize(
    ("column", "write"),
    crossed(["split", "Split", "SPLIT", " Subset", "partition", "data_split", "phase", "usage"], KINDS.values()),
)
def test_a_column_of_splits_is_known_by_its_name_or_by_what_it_holds(tmp_path: Path, write: Any, column: str) -> None:
    cells = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    assert sizes(load_source(write(tmp_path, column, cells))) == PINNED


@every_kind
@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train ", "Validation", "TEST"),
        ("training", "dev", "holdout"),
        ("TRAIN", "eval", "Hold-Out"),
        ("trainset", "valid", "test set"),
        ("\uff34\uff52\uff41\uff49\uff4e", "evaluation", "testing"),
        ("", "val", "test"),
    ],
)
def test_splits_have_many_names(tmp_path: Path, write: Any, train: str, val: str, test: str) -> None:
    assert sizes(load_source(write(tmp_path, "split", [train] * 4 + [val] * 2 + [test] * 2))) == PINNED


@every_kind
@pytest.mark.parametrize("unknown", ["hidden", "fold 3", "A", "2"])
def test_a_split_that_is_not_known_is_refused(tmp_path: Path, write: Any, unknown: str) -> None:
    folder = write(tmp_path, "Split", ["train"] * 6 + ["test", unknown])
    with pytest.raises(
        ValueError, match=rf"the column 'Split' of the table has '{unknown}', which stands for no split"
    ):
        load_source(folder)


@every_kind
def test_a_cell_without_a_split_beside_train_is_refused(tmp_path: Path, write: Any) -> None:
    folder = write(tmp_path, "split", ["train"] * 5 + ["", "test", "test"])
    with pytest.raises(ValueError, match=r"row 5 of the table has no split in the column 'split'; write train, val or"):
        load_source(folder)


@every_kind
@pytest.mark.parametrize(
    ("column", "yes", "no", "expected"),
    [
        ("is_valid", "True", "False", {"train": 6, "val": 2}),
        ("is_test", "1", "0", {"train": 6, "test": 2}),
        ("Is_Train", "no", "yes", {"train": 6, "test": 2}),
    ],
)
def test_a_column_of_truth_values(
    tmp_path: Path, write: Any, column: str, yes: str, no: str, expected: dict[str, int]
) -> None:
    assert sizes(load_source(write(tmp_path, column, [no] * 6 + [yes] * 2))) == expected


@every_kind
@pytest.mark.parametrize("cells", [["a", "b"] * 4, ["valid"] * 8, ["train", "car"] * 4, ["dev", "prod"] * 4])
def test_other_columns_are_not_taken_for_splits(tmp_path: Path, write: Any, cells: list[str]) -> None:
    assert sizes(load_source(write(tmp_path, "place", cells))) == {"train": 8}


@every_kind
@pytest.mark.parametrize("unknown", ["PublicTest", "test_hard", "val 2", "holdout-2024"])
def test_a_value_that_looks_like_a_split_is_refused_whatever_the_column(
    tmp_path: Path, write: Any, unknown: str
) -> None:
    folder = write(tmp_path, "usage", ["Training"] * 6 + [unknown] * 2)
    with pytest.raises(
        ValueError, match=rf"the column 'usage' of the table has '{unknown}', which stands for no split"
    ):
        load_source(folder)


@every_kind
def test_folds_that_are_not_used_are_said(tmp_path: Path, write: Any) -> None:
    folder = write(tmp_path, "fold", ["0", "1", "2", "3"] * 2)
    with pytest.warns(UserWarning, match=r"the column 'fold' of the table is not used: no split is told by it"):
        assert sizes(load_source(folder)) == {"train": 8}


@pytest.mark.parametrize("column", ["Split", "part"])
def test_splits_may_be_declared_as_classes(tmp_path: Path, column: str) -> None:
    rows = make_rows(LABELS, STRING).add_column(column, [0] * 6 + [1] * 2)
    rows = rows.cast_column(column, datasets.ClassLabel(names=["train", "test"]))
    rows.to_parquet(str(tmp_path / "all.parquet"))
    source = load_source(str(tmp_path))
    assert (sizes(source), source.class_names) == ({"train": 6, "test": 2}, ("cat", "dog"))


def test_two_columns_that_differ_are_refused(tmp_path: Path) -> None:
    rows = make_rows(LABELS, STRING).add_column("split_1", ["train"] * 6 + ["test"] * 2)
    rows.add_column("split_2", ["test"] * 2 + ["train"] * 6).to_parquet(str(tmp_path / "all.parquet"))
    with pytest.raises(ValueError, match=r"the columns 'split_1' and 'split_2' of the table say different splits"):
        load_source(str(tmp_path))


def test_a_column_divides_the_train_split_of_a_source(tmp_path: Path) -> None:
    train = make_rows(LABELS, STRING).add_column("split", ["train"] * 6 + ["validation"] * 2)
    test = make_rows(LABELS[:2], STRING).add_column("split", ["test"] * 2)
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path))
    assert sizes(load_source(str(tmp_path))) == {"train": 6, "val": 2, "test": 2}


def test_a_column_does_not_make_test_images_training_images(tmp_path: Path) -> None:
    rows = make_rows(LABELS, STRING).add_column("split", ["train"] * 8)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path))
    with pytest.raises(ValueError, match=r"row 0 of the test split is in the test split and its column says train"):
        load_source(str(tmp_path))


# Folders of splits that a table names


def top_table(folder: Path, files: list[str], ending: str) -> None:
    write_images(folder, *files)
    if ending == "csv":
        lines = [f"{file},{label}" for file, label in zip(files, LABELS, strict=False)]
        (folder / "metadata.csv").write_text("\n".join(["file_name,label", *lines]) + "\n")
    else:
        rows = [{"file_name": file, "label": label} for file, label in zip(files, LABELS, strict=False)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("images/Train", "images/Validation", "images/holdout"),
        ("training", "dev", "Test set"),
    ],
)
def test_a_table_at_the_top_honours_folders_of_splits(
    tmp_path: Path, ending: str, train: str, val: str, test: str
) -> None:
    folders = [train] * 4 + [val] * 2 + [test] * 2
    top_table(tmp_path, [f"{folder}/{name}" for folder, name in zip(folders, NAMES, strict=True)], ending)
    assert sizes(load_source(str(tmp_path))) == PINNED


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_table_in_each_folder_of_a_split(tmp_path: Path, ending: str) -> None:
    for split, number in PINNED.items():
        top_table(tmp_path / split, NAMES[:number], ending)
    source = load_source(str(tmp_path))
    assert sizes(source) == PINNED
    assert Path(str(source.splits["test"].encoded(0)["path"])) == tmp_path / "test/0.png"


def test_images_in_folders_of_splits_beside_others_are_refused(tmp_path: Path) -> None:
    top_table(tmp_path, ["train/0.png", "train/1.png", "test/2.png", "more/3.png"], "csv")
    with pytest.raises(ValueError, match=r"row 3 of the table is in no folder of a split, others are in folders for"):
        load_source(str(tmp_path))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_images(tmp_path, "train/0.png", "bus/1.png")
    (tmp_path / "labels.csv").write_text("file,label\ntrain/0.png,train\nbus/1.png,bus\n")
    assert sizes(load_source(str(tmp_path))) == {"train": 2}


def test_a_table_may_hold_out_images_of_the_train_folder_and_not_the_other_way_round(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"train/{name}" for name in NAMES), "test/8.png")
    lines = [
        f"train/{name},{label},{split}"
        for name, label, split in zip(NAMES, LABELS, ["train", "train", "val", "test"] * 2, strict=True)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,split", *lines]) + "\n")
    assert sizes(load_source(str(tmp_path))) == {"train": 4, "val": 2, "test": 2}
    with (tmp_path / "labels.csv").open("a") as table:
        table.write("test/8.png,cat,train\n")
    with pytest.raises(
        ValueError, match=r"row 8 of the table is said to be for training, and its image is in a folder"
    ):
        load_source(str(tmp_path))


def test_two_kinds_of_tables_are_refused(tmp_path: Path) -> None:
    top_table(tmp_path / "train", NAMES[:2], "csv")
    top_table(tmp_path, ["train/0.png", "train/1.png"], "csv")
    with pytest.raises(ValueError, match=r"could both hold the labels; keep one kind of table"):
        load_source(str(tmp_path))


# Names of files, folders and splits


def parquet_files(folder: Path, name: str) -> str:
    write_parquet(folder / f"{name}-00000.parquet", [0, 1, 0])
    return str(folder)


def parquet_folders(folder: Path, name: str) -> str:
    write_parquet(folder / name / "0000.parquet", [0, 1, 0])
    return str(folder)


def image_folders(folder: Path, name: str) -> str:
    write_images(folder, f"{name}/cat/1.png", f"{name}/dog/2.png", f"{name}/cat/3.png")
    return str(folder)


WAYS: dict[str, Callable[[Path, str], str]] = {
    "files": parquet_files,
    "folders": parquet_folders,
    "images": image_folders,
}


@pytest.mark.parametrize("write", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("name", "split"),
    [("eval", "val"), ("holdout", "test"), ("Evaluation", "val"), ("Test", "test"), ("heldout", "test")],
)
def test_other_names_of_held_out_splits(tmp_path: Path, write: Any, name: str, split: str) -> None:
    write(tmp_path, "train")
    assert sizes(load_source(write(tmp_path, name))) == {"train": 3, split: 3}


@pytest.mark.parametrize("write", WAYS.values(), ids=WAYS)
def test_a_name_that_stands_for_no_split_beside_train_is_refused(tmp_path: Path, write: Any) -> None:
    write(tmp_path, "train")
    with pytest.raises(ValueError, match=r"cannot tell"):
        load_source(write(tmp_path, "final"))


def test_folders_of_splits_within_each_class(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path, f"{name}/train/1.png", f"{name}/train/2.png", f"{name}/Test/3.png")
    source = load_source(str(tmp_path))
    assert (sizes(source), source.class_names) == ({"train": 4, "test": 2}, ("cat", "dog"))
    write_images(tmp_path, "owl/4.png")
    with pytest.raises(ValueError, match=r"cat has folders of splits, and other images beside or below them"):
        load_source(str(tmp_path))
