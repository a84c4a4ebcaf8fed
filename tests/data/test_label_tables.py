import warnings
from pathlib import Path

import pytest
from made_up_images import write_images

from nc_finetune.data.sources.source import load_source
from nc_finetune.data.sources.tables import Source
from nc_finetune.errors import DataWarning


def write_table(folder: Path, text: str, name: str = "labels.csv") -> str:
    (folder / name).write_text(text)
    return str(folder)


def labels_of(source: Source, split: str = "train") -> list[tuple[str, str]]:
    """Return file name and class of each row."""
    table = source.splits[split]
    return [
        (Path(str(table.encoded(row)["path"])).name, source.class_names[label])
        for row, label in enumerate(table.labels)
    ]


@pytest.mark.parametrize("name", ["labels.csv", "metadata.csv", "train.csv"])
def test_labels_come_from_a_table(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, "2.png", "1.png")
    source = load_source(write_table(tmp_path, "file_name,label\n2.png,dog\n1.png,cat\n", name))
    assert labels_of(source) == [("2.png", "dog"), ("1.png", "cat")]


def test_a_table_may_be_named_itself(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", "2.png")
    write_table(tmp_path, "file;class\n1.png;cat\n2.png;dog\n", "mine.csv")
    assert labels_of(load_source(str(tmp_path / "mine.csv"))) == [("1.png", "cat"), ("2.png", "dog")]


def test_a_table_divided_by_tabs_may_say_so_by_its_name(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", "2.png")
    write_table(tmp_path, "file\tclass\n1.png\tcat\n2.png\tdog\n", "labels.tsv")
    for source in (tmp_path, tmp_path / "labels.tsv"):
        assert labels_of(load_source(str(source))) == [("1.png", "cat"), ("2.png", "dog")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("annotations.csv", "file_name,label\nbatch1/1.png,cat\nbatch2/2.png,dog\n"),
        ("list.jsonl", '{"image": "batch1/1.png", "class": "cat"}\n'),
    ],
)
def test_a_table_of_labels_beside_folders_of_classes_is_named(tmp_path: Path, name: str, text: str) -> None:
    write_images(tmp_path, "batch1/1.png", "batch2/2.png")
    write_table(tmp_path, text, name)
    with pytest.warns(DataWarning, match=rf"{name} names files and labels, and is not read.* call it labels\."):
        assert load_source(str(tmp_path)).class_names == ("batch1", "batch2")


@pytest.mark.parametrize(
    "text", ["file_name,width\n1.png,3\n", "file,label,probability\n1.png,cat,0.9\n", "a,b\n1,2,3\n", "", "\N{SNOWMAN}"]
)
def test_other_tables_beside_folders_of_classes_are_nothing_to_speak_of(tmp_path: Path, text: str) -> None:
    write_images(tmp_path, "cat/1.png", "dog/2.png")
    write_table(tmp_path, text, "sizes.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_source(str(tmp_path))


def test_one_table_a_split(tmp_path: Path) -> None:
    write_images(tmp_path, "images/1.png", "images/2.png", "images/3.png")
    write_table(tmp_path, "id,label\n1,cat\n2,dog\n", "train.csv")
    source = load_source(write_table(tmp_path, "id,label\n3,dog\n", "validation.csv"))
    assert labels_of(source) == [("1.png", "cat"), ("2.png", "dog")]
    assert labels_of(source, "val") == [("3.png", "dog")]


def test_a_table_may_name_the_split(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", "2.png", "3.png")
    source = load_source(write_table(tmp_path, "file,label,split\n1.png,cat,train\n2.png,dog,train\n3.png,dog,test\n"))
    assert {name: len(table.labels) for name, table in source.splits.items()} == {"train": 2, "test": 1}


def test_columns_that_are_given(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", "2.png")
    folder = write_table(tmp_path, "label,photo,breed\nx,1.png,pug\nx,2.png,lab\n")
    assert labels_of(load_source(folder, "photo", "breed")) == [("1.png", "pug"), ("2.png", "lab")]


def test_several_labels(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", "2.png", "3.png")
    source = load_source(write_table(tmp_path, "file,labels\n1.png,sea|sky\n2.png,sky\n3.png,sky|sea|sky\n"))
    assert source.class_names == ("sea", "sky")
    assert source.splits["train"].label_sets == [(0, 1), (1,), (0, 1)]
    assert source.multi_label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"labels\.csv is empty: expected a line with the names of columns, and one for each image"),
        ("file,label\n", r"labels\.csv has no rows: expected one for each image below the names of columns"),
        ('file,label\n"1.png,cat\n', r"labels\.csv is no CSV file"),
        ("file,label\n1.png,cat\n2.png\n", r"line 3: 1 cells where the first line has 2; mend it"),
        ("file,label\n1.png,cat\n1.png,dog\n", r"line 3: '1\.png' is there twice; keep one line"),
        ("file,label\n1.png, \n2.png,\n", r"the train split has no labels; there is nothing to learn from"),
        ("file,label,label\n1.png,cat,x\n2.png,dog,y\n", r"labels\.csv has two columns 'label'; rename one"),
        ("file,label\n1.png,cat\n9.png,dog\n", r"line 3: the image '9\.png' is not below .*; mend the table"),
        ("file,label\n../2.png,cat\n1.png,dog\n", r"line 2: '\.\./2\.png' is not below .*; name files relative to it"),
        ("file,label\n/etc/passwd,cat\n1.png,dog\n", r"line 2: '/etc/passwd' is not below .*; name files relative"),
        ("file,label\nsame,cat\n1.png,dog\n", r"line 2: the image 'same' may be a/same\.png or b/same\.png; mend"),
        ("photo,label\n1.png,cat\n", r"cannot tell the image column of .* among photo, label; call it 'file_name' or"),
        ("file,breed\n1.png,cat\n", r"cannot tell the label column of .* among file, breed; call it 'label' or pass"),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path: Path, text: str, message: str) -> None:
    write_images(tmp_path, "1.png", "2.png", "a/same.png", "b/same.png")
    with pytest.raises(ValueError, match=message):
        load_source(write_table(tmp_path, text))


def test_a_table_that_is_not_utf_8(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png")
    (tmp_path / "labels.csv").write_bytes("file,label\n1.png,Bär\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"labels\.csv is not UTF-8: .*; save it as UTF-8"):
        load_source(str(tmp_path))


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png")
    with pytest.raises(ValueError, match=r"unknown label column 'breeds'; did you mean 'breed'\?"):
        load_source(write_table(tmp_path, "file,breed\n1.png,pug\n"), None, "breeds")


def test_whole_paths_are_taken_where_they_lead_below_the_table(tmp_path: Path) -> None:
    write_images(tmp_path / "real", "1.png", "2.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for folder in ("real", "link"):
        lines = [f"{tmp_path / folder / name},{label}" for name, label in (("1.png", "cat"), ("2.png", "dog"))]
        source = write_table(tmp_path / "link", "\n".join(["file,label", *lines]))
        assert load_source(source).class_names == ("cat", "dog")


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png")
    text = 'file,label\n\n1.png,"a cat\nat home"\n,\n9.png,dog\n'
    with pytest.raises(ValueError, match=r"line 6: the image '9\.png' is not below"):
        load_source(write_table(tmp_path, text))


def test_lines_without_anything_are_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", "2.png")
    found = load_source(write_table(tmp_path, "file,label\n1.png,cat\n , \n2.png,dog\n,\n,\n"))
    assert found.splits["train"].labels == [0, 1]
