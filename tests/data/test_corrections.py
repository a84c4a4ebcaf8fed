"""Corrected labels: tables of every kind of source, and tables that do not fit."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from made_up_images import make_rows, write_images, write_parquet

from nc_finetune.data import ImageData
from nc_finetune.data.corrections import apply_corrections, image_key

COLUMNS = ("split", "row", "label", "corrected", "image")
Edit = Callable[[dict[str, str]], None]


def write_table(path: Path, source: str, *changes: tuple[str, int, str], edit: Edit = lambda row: None) -> Path:
    """Write a table with the corrected label of some rows."""
    data = ImageData(source).data
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for split, row, corrected in changes:
            table = data.splits[split]
            key, label = image_key(table.encoded(row)), data.class_names[table.labels[row]]
            line = {"split": split, "row": str(row), "label": label, "corrected": corrected, "image": key}
            edit(line)
            writer.writerow(line)
    return path


def labels_of(source: Path | str, split: str = "train") -> list[str]:
    data = ImageData(str(source)).data
    return [data.class_names[label] for label in data.splits[split].labels]


def content_of(source: Path | str, split: str = "train") -> list[str]:
    table = ImageData(str(source)).data.splits[split]
    return [image_key(table.encoded(row)) for row in range(len(table.labels))]


def test_a_folder_of_images_becomes_tables_that_name_them(tmp_path: Path) -> None:
    source = tmp_path / "pets"
    for split in ("train", "test"):
        for value, name in enumerate(("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")):
            write_images(source / split, name, value=value + 10 * (split == "test"))
    table = write_table(tmp_path / "t.csv", str(source), ("train", 1, "dog"), ("test", 3, "cat"), ("test", 0, ""))
    done = apply_corrections(str(source), table, tmp_path / "new")
    assert (done.changed, done.images, done.out) == (2, 8, tmp_path / "new")
    assert sorted(path.name for path in done.out.iterdir()) == ["test.parquet", "train.parquet"]
    assert (done.out / "train.parquet").stat().st_size < 10_000  # paths, not images
    assert labels_of(done.out) == ["cat", "dog", "dog", "dog"]
    assert labels_of(done.out, "test") == ["cat", "cat", "dog", "cat"]
    assert content_of(done.out) == content_of(source)
    assert not list(tmp_path.glob(".*.tmp"))


def test_tables_keep_their_columns_images_and_rows_without_a_label(tmp_path: Path) -> None:
    rows = make_rows(["cat", "dog", None, "cat", "dog"], datasets.Value("string"), image="img", label="breed")
    rows = rows.add_column("subset", ["train"] * 4 + ["test"]).add_column("weight", [1.5, 2.5, 3.5, 4.5, 5.5])
    (tmp_path / "pets").mkdir()
    rows.to_parquet(str(tmp_path / "pets" / "all.parquet"))
    options = {"image_column": "img", "label_column": "breed"}
    data = ImageData(str(tmp_path / "pets"), **options).data  # type: ignore[arg-type]
    key = image_key(data.splits["train"].encoded(2))
    (tmp_path / "t.csv").write_text(f"split;row;label;corrected;image\ntrain;2;cat;dog;{key}\n")  # as Excel may write
    apply_corrections(str(tmp_path / "pets"), tmp_path / "t.csv", tmp_path / "new", **options)
    found = ImageData(str(tmp_path / "new"), **options).data  # type: ignore[arg-type]
    assert found.splits["train"].labels == [0, 1, 1]
    assert found.splits["test"].labels == [1]
    assert sum(len(images.rows) for images in found.unlabelled.values()) == 1
    others = found.splits["train"].others
    assert others is not None
    assert others["weight"] == [1.5, 2.5, 4.5]
    assert found.splits["train"].encoded(2) == data.splits["train"].encoded(2)


def test_a_table_of_labels_beside_images_is_mended(tmp_path: Path) -> None:
    write_images(tmp_path / "pets", "1.png", "2.png", "3.png", "4.png")
    for number in range(1, 5):
        write_images(tmp_path / "pets", f"{number}.png", value=number)
    (tmp_path / "pets" / "labels.csv").write_text("file,label,place\n1.png,cat,a\n2.png,cat,b\n3.png,dog,c\n4.png,,d\n")
    table = write_table(tmp_path / "t.csv", str(tmp_path / "pets"), ("train", 1, "dog"))
    apply_corrections(str(tmp_path / "pets"), table, tmp_path / "new")
    assert labels_of(tmp_path / "new") == ["cat", "dog", "dog"]


def test_numbers_are_class_names_too(tmp_path: Path) -> None:
    write_parquet(tmp_path / "d" / "all.parquet", [30, 4, 30, 4], datasets.Value("int64"))
    table = write_table(tmp_path / "t.csv", str(tmp_path / "d"), ("train", 0, "4"))
    apply_corrections(str(tmp_path / "d"), table, tmp_path / "new")
    assert labels_of(tmp_path / "new") == ["4", "4", "30", "4"]


def change(column: str, value: str) -> Edit:
    return lambda row: row.update({column: value})


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (change("corrected", "cow"), r"line 2: there is no class 'cow'; write one of 'cat', 'dog', or nothing to keep"),
        (change("corrected", ""), "changes no label: write the right class into its column 'corrected'"),
        (change("corrected", "cat"), "changes no label"),
        (change("split", "val"), r"line 2: there is no split 'val', only train; the source is not the one"),
        (change("row", "4"), r"line 2: there is no row 4 of train, which has rows 0 to 3; the source is not"),
        (change("row", "first"), "line 2: there is no row first of train"),
        (change("image", "h0123"), "line 2: row 0 of train is another image; the source is not the one"),
        (change("label", "dog"), "line 2: row 0 of train is labelled 'cat' by now, not 'dog'; the source is not"),
    ],
)
def test_tables_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path: Path, edit: Edit, said: str) -> None:
    write_parquet(tmp_path / "pets" / "all.parquet", [0, 1, 0, 1])
    table = write_table(tmp_path / "t.csv", str(tmp_path / "pets"), ("train", 0, "dog"), edit=edit)
    with pytest.raises(ValueError, match=said):
        apply_corrections(str(tmp_path / "pets"), table, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets", "t.csv"]


def test_odd_tables_and_folders_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "pets"
    write_parquet(source / "all.parquet", [0, 1, 0, 1])
    twice = write_table(tmp_path / "t.csv", str(source), ("train", 0, "dog"), ("train", 0, "dog"))
    with pytest.raises(ValueError, match="line 3: row 0 of train is there twice; keep one line of it"):
        apply_corrections(str(source), twice, tmp_path / "new")
    (tmp_path / "other.csv").write_text("file,label\n1.png,cat\n")
    with pytest.raises(ValueError, match=r"other.csv has no column 'split', only file, label; give the table"):
        apply_corrections(str(source), tmp_path / "other.csv", tmp_path / "new")
    (tmp_path / "names.csv").write_text("split,row,label,corrected,image\n")
    with pytest.raises(ValueError, match=r"^.*names.csv has no rows: nothing to correct$"):
        apply_corrections(str(source), tmp_path / "names.csv", tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="no table of corrected labels at"):
        apply_corrections(str(source), tmp_path / "none.csv", tmp_path / "new")
    for out, said in ((source / "new", "lies within"), (source, "holds files already, .*; name a new folder by --out")):
        with pytest.raises(ValueError, match=said):
            apply_corrections(str(source), twice, out)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "pets" / "all.parquet", [0, 1, 0, 1])
    table = write_table(tmp_path / "t.csv", str(tmp_path / "pets"), ("train", 0, "dog"))

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        apply_corrections(str(tmp_path / "pets"), table, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets", "t.csv"]


def test_tables_of_a_relative_source_are_read_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        for value, name in enumerate(("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")):
            write_images(tmp_path / "pets" / split, name, value=value)
    write_images(tmp_path / "pets" / "unlabelled", "1.png", "2.png")
    monkeypatch.chdir(tmp_path)
    table = write_table(tmp_path / "t.csv", "pets", ("train", 1, "dog"))
    apply_corrections("pets", table, "new")
    expected = content_of("pets")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = ImageData(str(tmp_path / "new")).data
    every = [*found.splits.values(), *found.unlabelled.values()]
    assert len({name for images in every for name in images.files()}) == 10
    assert all(Path(name).is_file() for images in every for name in images.files())
    assert content_of(tmp_path / "new") == expected


def test_results_may_lie_beside_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 5):
        write_images(tmp_path, f"{number}.png", value=number)
    (tmp_path / "mine.csv").write_text("file,label\n1.png,cat\n2.png,cat\n3.png,dog\n4.png,dog\n")
    monkeypatch.chdir(tmp_path)
    table = write_table(tmp_path / "t.csv", "mine.csv", ("train", 1, "dog"))
    apply_corrections("mine.csv", table, "corrected")
    assert labels_of("corrected") == ["cat", "dog", "dog", "dog"]
    assert labels_of("mine.csv") == ["cat", "cat", "dog", "dog"]


@pytest.mark.parametrize("out", [".", "link", "to_nothing", "there", "../empty/new/one"])
def test_a_folder_may_be_there_and_may_be_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    source = tmp_path / "pets"
    for split in ("train", "test"):
        write_parquet(source / f"{split}.parquet", [0, 1, 0, 1])
    table = write_table(tmp_path / "t.csv", str(source), ("train", 0, "dog"))
    for name in ("empty", "target"):
        (tmp_path / name).mkdir()
    if out == "link":
        (tmp_path / "empty" / "link").symlink_to(tmp_path / "target")
    if out == "to_nothing":
        (tmp_path / "empty" / "to_nothing").symlink_to(tmp_path / "nothing")
    if out == "there":
        (tmp_path / "empty" / "there").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    apply_corrections(str(source), table, out)
    assert sorted(path.name for path in Path(out).iterdir()) == ["test.parquet", "train.parquet"]
    assert Path.cwd().samefile(tmp_path / "empty")
    assert labels_of(out) == ["dog", "dog", "cat", "dog"]


def test_a_move_that_fails_leaves_the_folder_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "pets"
    for split in ("train", "test"):
        write_parquet(source / f"{split}.parquet", [0, 1, 0, 1])
    table = write_table(tmp_path / "t.csv", str(source), ("train", 0, "dog"))
    (tmp_path / "new").mkdir()
    move = Path.replace

    def fail(path: Path, to: Path) -> Path:
        if path.name == "train.parquet":
            raise OSError("no space left")
        return move(path, to)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        apply_corrections(str(source), table, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("folders", "source"),
    [
        (("pets/broken", "pets/valid"), "pets"),
        (("pets/train", "pets/other"), "pets"),
        (("pets/train/valid", "pets/train/broken", "pets/test/valid", "pets/test/broken"), "pets"),
        (("pets/train/cat", "pets/train/test"), "pets/train"),
        (("holdout/cat", "holdout/dog"), "holdout"),
        (("cat/train", "cat/test", "dog/train", "dog/test"), "."),
    ],
)
def test_splits_stay_whatever_folders_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: tuple[str, ...], source: str
) -> None:
    for number, folder in enumerate(folders):
        for value in range(3):
            write_images(tmp_path / "all" / folder, f"{value}.png", value=3 * number + value)
    monkeypatch.chdir(tmp_path / "all")
    before = {split: content_of(source, split) for split in ImageData(source).data.splits}
    labels = {split: labels_of(source, split) for split in before}
    wrong = next(name for name in labels["train"] if name != labels["train"][0])
    apply_corrections(source, write_table(tmp_path / "t.csv", source, ("train", 0, wrong)), tmp_path / "new")
    found = ImageData(str(tmp_path / "new")).data.splits
    assert {split: content_of(tmp_path / "new", split) for split in found} == before
    labels["train"][0] = wrong
    assert {split: labels_of(tmp_path / "new", split) for split in before} == labels
    again = write_table(tmp_path / "u.csv", str(tmp_path / "new"), ("train", 1, wrong))
    apply_corrections(str(tmp_path / "new"), again, tmp_path / "newer")
    assert {split: content_of(tmp_path / "newer", split) for split in before} == before
    others = ImageData(str(tmp_path / "newer")).data.splits["train"].others
    assert others is not None
    assert others.column_names == ["label"]
