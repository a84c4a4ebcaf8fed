"""Which files are found below a folder, and what is said of those that are not read."""

import json
import os
import re
import sys
import warnings
from pathlib import Path

import datasets
import pytest
from broken_images import encoded, photo
from crossed import crossed
from made_up_images import write_images, write_parquet
from PIL import Image

from nc_finetune import ImageData
from nc_finetune.cli import main
from nc_finetune.data import UnlabelledFolder, check_data
from nc_finetune.data._pixels.image_files import image_endings
from nc_finetune.data.sources.file_listing import visible_files
from nc_finetune.data.sources.folders import read_folder

LOOPS = {
    "each to the other": {"cat/more": "dog", "dog/more": "cat"},
    "in a ring": {"cat/more": "dog", "dog/more": "owl", "owl/more": "cat"},
    "to what holds it": {"cat/round": "."},
    "over a folder in between": {"cat/deep/more": "dog", "dog/more": "cat"},
    "to a link to itself": {"cat/more": "dog", "dog/self": "dog"},
    "each to all": {f"{one}/{other}": other for one in ("cat", "dog", "owl") for other in ("cat", "dog", "owl")},
}


@pytest.mark.parametrize("loop", LOOPS)
def test_links_in_a_loop_do_not_multiply_images(tmp_path: Path, loop: str) -> None:
    images = ["cat/1.png", "dog/1.png", "owl/1.png"]
    write_images(tmp_path, *images)
    for link, target in LOOPS[loop].items():
        (tmp_path / link).parent.mkdir(exist_ok=True)
        (tmp_path / link).symlink_to((tmp_path / target).resolve())
    found = [str(path) for path in visible_files(tmp_path)]
    # What a folder holds that is in no loop itself is there under both names.
    assert found == (["cat/1.png", "cat/more/1.png", *images[1:]] if loop == "to a link to itself" else images)


def test_many_folders_that_link_to_each_other_are_listed_at_once(tmp_path: Path) -> None:
    names = [f"class{number}" for number in range(12)]
    write_images(tmp_path, *(f"{name}/1.png" for name in names))
    for one in names:
        for other in names:
            (tmp_path / one / other).symlink_to(tmp_path / other)
    assert len(visible_files(tmp_path)) == 12


def test_links_to_elsewhere_are_followed(tmp_path: Path) -> None:
    write_images(tmp_path / "there", "cats/1.png", "dogs/1.png")
    (tmp_path / "here").mkdir()
    for name in ("cats", "dogs"):
        (tmp_path / "here" / name).symlink_to(tmp_path / "there" / name)
    assert [str(path) for path in visible_files(tmp_path / "here")] == ["cats/1.png", "dogs/1.png"]


BAD_NAMES = {"file": b"cat/caf\xe9.png", "class": b"caf\xe9/1.png", "folder": b"caf\xe9"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize(("read", "kind"), crossed(["folder", "table", "unlabelled", "data"], BAD_NAMES))
def test_names_that_are_not_utf_8_are_named(tmp_path: Path, kind: str, read: str) -> None:
    root = tmp_path / os.fsdecode(BAD_NAMES["folder"]) if kind == "folder" else tmp_path
    write_images(root, "cat/1.png", "dog/1.png")
    if kind != "folder":
        write_images(root, os.fsdecode(BAD_NAMES[kind]))
    (root / "labels.csv").write_text("file,label\n1.png,cat\n") if read == "table" else None
    readers = {
        "folder": lambda: read_folder(root),
        "table": lambda: read_folder(root),
        "unlabelled": lambda: UnlabelledFolder(root, ["cat", "dog"]),
        "data": lambda: ImageData(str(root)).num_classes,
    }
    with pytest.raises(ValueError, match=r"the name of the file .*caf\\xe9.* is not UTF-8; rename it") as caught:
        readers[read]()
    str(caught.value).encode()


# What is read

WRITTEN = {
    ".gif": "GIF", ".jfif": "JPEG", ".jpe": "JPEG", ".avif": "AVIF", ".jp2": "JPEG2000", ".ico": "ICO", ".tga": "TGA",
    ".qoi": "QOI", ".JPG": "JPEG", ".pcx": "PCX", ".pnm": "PPM", ".sgi": "SGI", ".apng": "PNG", ".dib": "DIB",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "ending"), crossed(["classes", "table", "unlabelled"], WRITTEN))
def test_what_pillow_decodes_is_read(tmp_path: Path, ending: str, kind: str) -> None:
    names = [f"{'cat' if number % 2 else 'dog'}/{number}" for number in range(8)]
    for name in names:
        path = tmp_path / f"{name}{ending}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(photo(), WRITTEN[ending]))
    if kind == "unlabelled":
        data = UnlabelledFolder(tmp_path, ["cat", "dog"], image_size=8)
        assert sum(len(images) for images in data.predict_dataloader()) == 8
        return
    if kind == "table":
        lines = (f"{Path(name).name},{Path(name).parent}\n" for name in names)
        (tmp_path / "labels.csv").write_text("file,label\n" + "".join(lines))
    labelled = ImageData(str(tmp_path), image_size=8, val_size=2, test_size=2)
    assert (labelled.class_names, labelled.left_out.files) == (("cat", "dog"), ())
    assert len(labelled.train_set) == 4
    assert [labelled.train_set[item][0].shape for item in range(4)] == [(3, 8, 8)] * 4


def test_what_is_no_picture_for_pillow_is_not_read() -> None:
    assert not image_endings() & {".pdf", ".h5", ".hdf", ".grib", ".mpg", ".eps", ".wmf", ".csv", ".txt"}


def test_a_plug_in_that_is_registered_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    image_endings.cache_clear()
    monkeypatch.setitem(Image.OPEN, "TOY", (lambda *_: None, None))
    monkeypatch.setitem(Image.EXTENSION, ".toy", "TOY")
    assert ".toy" in image_endings()
    image_endings.cache_clear()


# What is left out

LEFT = {
    "a class of another kind": (
        ["owl/1.svg", "owl/2.svg"],
        r"2 files were left out \(2 \.svg\), e\.g\. owl/1\.svg.*'owl'",
    ),
    "among others": (["cat/3.heic"], r"1 files were left out \(1 \.heic\).*convert images of kinds .* plug-in"),
    "scans": (["dog/x.dcm", "dog/y.DNG"], r"1 \.dcm, 1 \.dng"),
    "anything": (["cat/notes.docx"], r"1 \.docx"),
    "without ending": (["cat/0001"], r"1 without ending"),
    "an image beside the classes": (["cover.png"], r"e\.g\. cover\.png"),
}


def _write(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if Path(name).suffix in image_endings():
        write_images(folder, name)
    else:
        (folder / name).write_bytes(b"something")


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_left_out_of_folders_of_classes_is_named(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names, message = LEFT[kind]
    write_images(tmp_path, *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(10)))
    for name in (*names, ".hidden.heic", "cat/Thumbs.db"):
        _write(tmp_path, name)
    data = ImageData(str(tmp_path), image_size=8)
    with pytest.warns(UserWarning, match=message) as caught:
        assert data.num_classes == 2
    assert len(caught) == 1
    assert sorted(map(str, data.left_out.files)) == sorted(names)
    report = check_data(data)
    assert sorted(report.left_out) == sorted(names)
    main(["data", "check", str(tmp_path), "--out", str(tmp_path / "report.json")])
    printed, said = capsys.readouterr()
    assert re.search(message, printed)
    assert "note" not in said  # once is enough
    assert json.loads((tmp_path / "report.json").read_text())["left_out_text"]


@pytest.mark.parametrize("table", ["labels.csv", "table.csv"])
def test_images_that_a_table_does_not_name_are_named(tmp_path: Path, table: str) -> None:
    write_images(tmp_path, *(f"images/{number}.png" for number in range(6)))
    for name in ("images/6.heic", "images/1.txt"):
        (tmp_path / name).write_bytes(b"something")
    lines = "".join(f"{number}.png,{'cat' if number % 2 else 'dog'}\n" for number in range(4))
    (tmp_path / table).write_text("file,label\n" + lines)
    data = ImageData(str(tmp_path / table if table == "table.csv" else tmp_path), val_size=2, test_size=2)
    with pytest.warns(UserWarning, match=r"3 files were left out \(2 \.png, 1 \.heic\)"):
        assert data.num_classes == 2


def test_images_beside_parquet_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 5)
    write_images(tmp_path, "cat/1.png")
    with pytest.warns(UserWarning, match=r"1 files were left out \(1 \.png\), e\.g\. cat/1\.png"):
        assert ImageData(str(tmp_path)).num_classes == 2


@pytest.mark.parametrize("given", ["relative", "absolute", "linked"])
@pytest.mark.parametrize("named", ["relative", "absolute"])
def test_images_that_a_table_names_by_another_path_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, named: str
) -> None:
    folder = tmp_path / "data"
    names = [f"images/{number}.png" for number in range(6)]
    write_images(folder, *names)
    paths = names if named == "relative" else [str(folder / name) for name in names]
    rows = datasets.Dataset.from_dict({"image": paths, "label": ["cat", "dog"] * 3})
    rows.to_parquet(str(folder / "train.parquet"))
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    source = {"relative": "data", "absolute": str(folder), "linked": "link"}[given]
    assert check_data(ImageData(source, val_size=2, test_size=2)).left_out == []


def test_tables_in_folders_of_splits_are_not_left_out(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_images(tmp_path / split, *(f"images/{number}.png" for number in range(4)))
        lines = [json.dumps({"file_name": f"images/{number}.png", "label": "ab"[number % 2]}) for number in range(4)]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(lines))
    report = check_data(ImageData(str(tmp_path), val_size=2))
    assert report.left_out == []


def test_what_is_no_image_is_not_to_be_converted(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(4)))
    (tmp_path / "cat" / "notes.txt").write_text("about cats")
    (tmp_path / "annotations.csv").write_text("file,label\ncat/0.png,cat\n")  # is not read, nor hides what is left out
    report = check_data(ImageData(str(tmp_path), val_size=2, test_size=2))
    assert report.left_out == ["cat/notes.txt"]
    assert "convert" not in str(report.left_out_text)


def test_an_image_of_another_kind_that_a_table_names_is_a_bad_image(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{number}.png" for number in range(9)))
    (tmp_path / "9.heic").write_bytes(b"\0\0\0\x18ftypheic")
    lines = "".join(f"{number}.{'heic' if number == 9 else 'png'},{number % 2}\n" for number in range(10))
    (tmp_path / "labels.csv").write_text("file,label\n" + lines)
    report = check_data(ImageData(str(tmp_path), val_size=2, test_size=2))
    assert [Path(str(bad.path)).name for bad in report.broken] == ["9.heic"]


def test_what_is_left_out_of_a_folder_without_labels_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", "deep/2.png")
    for name in ("3.heic", "deep/4.docx"):
        (tmp_path / name).write_bytes(b"something")
    with pytest.warns(UserWarning, match=r"2 files were left out \(1 \.heic, 1 \.docx\)"):
        assert UnlabelledFolder(tmp_path, ["cat", "dog"]).files == ("1.png", "deep/2.png")


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(10)))
    (tmp_path / "README.md").write_text("about these")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ImageData(str(tmp_path)).num_classes == 2
