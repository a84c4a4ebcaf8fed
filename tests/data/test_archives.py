"""Webdataset archives: every sample is read, or named in one clear error."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nc_finetune.data import ImageData
from nc_finetune.data._pixels.transforms import DecodeAndResize
from nc_finetune.data.sources.source import load_source
from nc_finetune.data.sources.tables import Source

FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF", "tiff": "TIFF"}


def picture(value: int, ending: str) -> bytes:
    content = io.BytesIO()
    Image.new("L", (8, 8), value).save(content, FORMATS[ending.lower().rpartition(".")[2]])
    return content.getvalue()


def write(path: Path, *samples: dict[str, Any]) -> str:
    """Write samples: by ending, the grey value of an image, text, or what becomes JSON; ``key`` names a sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, sample in enumerate(samples):
            name = sample.get("key", f"{number:04}")
            for ending, value in sample.items():
                if ending == "key":
                    continue
                last = ending.lower().rpartition(".")[2]
                if last in FORMATS:
                    content = picture(value, ending)
                elif isinstance(value, bytes):
                    content = value
                else:
                    content = (value if isinstance(value, str) else json.dumps(value)).encode()
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return str(path.parent)


def read(source: Source, split: str = "train") -> list[tuple[int, str]]:
    """Return grey value, to the nearest ten, and class of each row."""
    table, decode = source.splits[split], DecodeAndResize(8)
    return [
        (round(int(decode(table.encoded(row))[0, 0, 0]) / 10) * 10, source.class_names[label])
        for row, label in enumerate(table.labels)
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [("png", "jpg"), ("jpg", "JPG"), ("jpeg", "jpg"), ("webp", "PNG"), ("bmp", "gif"), ("tiff", "png")],
)
def test_endings_may_differ_between_archives_and_inside_one(tmp_path: Path, one: str, other: str) -> None:
    write(tmp_path / "a.tar", {one: 10, "cls": "0"}, {other: 20, "cls": "1"})
    source = load_source(write(tmp_path / "b.tar", {other: 30, "cls": "1"}, {other: 40, "cls": "0"}))
    assert read(source) == [(10, "0"), (20, "1"), (30, "1"), (40, "0")]


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ({"cls": "cat"}, {"cls": "dog"}, ("cat", "dog")),
        ({"cls": "10\n"}, {"cls": "2"}, ("2", "10")),
        ({"CLS": "cat"}, {"cls": " dog "}, ("cat", "dog")),
        ({"txt": "cat"}, {"txt": "dog"}, ("cat", "dog")),
        ({"label": "cat"}, {"label": "dog"}, ("cat", "dog")),
        ({"json": {"label": "cat", "id": 1}}, {"json": {"label": "dog"}}, ("cat", "dog")),
        ({"json": {"class": 3}}, {"json": {"class": 1}}, ("1", "3")),
        ({"json": '"cat"'}, {"json": '"dog"'}, ("cat", "dog")),
        ({"json": {"label": "cat"}}, {"cls": "dog"}, ("cat", "dog")),
        ({"cls": "cat", "txt": "a long caption"}, {"cls": "dog", "txt": "another"}, ("cat", "dog")),
        ({"json": {"label": "cat"}, "txt": "a caption"}, {"json": {"label": "dog"}, "txt": "b"}, ("cat", "dog")),
    ],
    ids=str,
)
def test_labels_in_every_kind_of_file(tmp_path: Path, first: Any, second: Any, names: tuple[str, ...]) -> None:
    source = load_source(write(tmp_path / "train.tar", {"png": 10, **first}, {"jpg": 20, **second}))
    assert source.class_names == names
    assert len(source.splits["train"].labels) == 2


def test_lists_of_labels(tmp_path: Path) -> None:
    samples = [{"png": 10, "json": {"labels": ["sea", "sky"]}}, {"png": 20, "json": {"labels": []}}]
    source = load_source(write(tmp_path / "a.tar", *samples, {"png": 30, "json": {"labels": ["sky"]}}))
    assert source.splits["train"].label_sets == [(0, 1), (), (1,)]


def test_columns_that_are_named(tmp_path: Path) -> None:
    samples = [{"left.png": 10, "right.png": 20, "json": {"breed": name, "label": "x"}} for name in ("pug", "lab")]
    source = load_source(write(tmp_path / "a.tar", *samples), "right.png", "breed")
    assert read(source) == [(20, "pug"), (20, "lab")]


def test_masks_beside_an_image_are_no_images(tmp_path: Path) -> None:
    samples = [{"jpg": 10, "seg.png": 99, "cls": "a"}, {"jpg": 20, "seg.png": 99, "cls": "b"}]
    assert read(load_source(write(tmp_path / "a.tar", *samples))) == [(10, "a"), (20, "b")]


def test_groups_and_splits_in_json(tmp_path: Path) -> None:
    samples = [
        {"png": 10, "json": {"label": row % 2, "person": row // 2, "split": "train" if row < 20 else "test"}}
        for row in range(24)
    ]
    data = ImageData(write(tmp_path / "a.tar", *samples), image_size=8, group="person")
    assert data.summary.images["test"] == 4
    assert data.summary.groups == 12


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"cls": "1"}, r"the sample '0001' of .*a\.tar has no image, only \.cls"),
        ({"png": 1, "jpg": 2, "cls": "1"}, r"the sample '0001' of .*a\.tar has several images, \.png, \.jpg; mend"),
        ({"a.png": 1, "b.png": 2, "cls": "1"}, r"'0001' of .*a\.tar has several images, \.a\.png, \.b\.png"),
        ({"png": 1, "json": b"{"}, r"the sample '0001' of .*a\.tar: its \.json is damaged"),
        ({"png": 1, "json": {"label": {"a": 1}}}, r"the sample '0001' of .*a\.tar: its label is \{\"a\": 1\}; give"),
        ({"png": 1, "cls": b"\xff\xfe\xff"}, r"the sample '0001' of .*a\.tar: its \.cls is no text in UTF-8"),
        ({"png": 1, "PNG": 2, "cls": "1"}, r"the sample '0001' of .*a\.tar has two files that end in \.png"),
    ],
)
def test_a_sample_that_cannot_be_read_is_named(tmp_path: Path, sample: dict[str, Any], message: str) -> None:
    folder = write(tmp_path / "a.tar", {"png": 10, "cls": "0"}, sample, {"png": 30, "cls": "1"})
    with pytest.raises(ValueError, match=message):
        load_source(folder)


def test_a_sample_without_a_label_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path / "a.tar", {"png": 10, "cls": "a"}, {"png": 20}, {"png": 30, "cls": "b"})
    with pytest.warns(UserWarning, match=r"1 of the 3 images of the train split have no label"):
        assert read(load_source(folder)) == [(10, "a"), (30, "b")]


def test_an_archive_without_samples(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read: a\.tar is empty; replace those that are damaged or empty"):
        load_source(write(tmp_path / "a.tar"))


def test_an_archive_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    folder = write(tmp_path / "a.tar", {"png": 10, "cls": "a"}, {"png": 20, "cls": "b"})
    assert read(load_source(folder))[0] == (10, "a")
    write(tmp_path / "a.tar", {"png": 40, "cls": "a"}, {"png": 20, "cls": "b"})
    assert read(load_source(folder))[0] == (40, "a")
