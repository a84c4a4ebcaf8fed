"""Names of other people in tables that a spreadsheet opens."""

import csv
from pathlib import Path
from typing import Any

import pytest
from broken_images import encoded, photo

from nc_finetune import ImageClassifier
from nc_finetune._common.csv_text import class_headings, csv_text, joined_names, plain_cell
from nc_finetune.callbacks import PredictionWriter
from nc_finetune.data import UnlabelledFolder
from nc_finetune.data.bad_images import BadImage, write_bad_images

FORMULAS = ("=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1")


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_is_taken_for_a_formula(text: str) -> None:
    (row,) = csv.reader(csv_text([[text, "plain", -1.5]]).splitlines())
    assert row[0][0] == "'"
    assert row[1:] == ["plain", "-1.5"]


def test_other_texts_come_back_as_they_were() -> None:
    cells = ["a,b", 'say "x"', "two\nlines", "1e-05", "", "Bär"]
    assert next(csv.reader(csv_text([cells]).splitlines(keepends=True))) == cells
    assert [plain_cell(value) for value in (None, -3, 0.5)] == [None, -3, 0.5]


def test_predictions_of_files_and_classes_with_odd_names(tmp_path: Path, make_trainer: Any) -> None:
    (tmp_path / "=cmd.jpg").write_bytes(encoded(photo()))
    data = UnlabelledFolder(tmp_path, ["=evil()", "dog"], image_size=32)
    make_trainer(PredictionWriter(tmp_path / "out.csv")).predict(
        ImageClassifier("test_resnet", 2, weights=None), data, return_predictions=False
    )
    header, line = csv.reader((tmp_path / "out.csv").open())
    assert header == ["file", "prediction", "'=evil()", "dog"]
    assert line[0] == "'=cmd.jpg"
    assert line[1] in ("'=evil()", "dog")


def test_classes_that_are_called_as_other_columns_have_columns_of_their_own(tmp_path: Path, make_trainer: Any) -> None:
    (tmp_path / "it.jpg").write_bytes(encoded(photo()))
    data = UnlabelledFolder(tmp_path, ["file", "prediction", "index", "class file"], image_size=32)
    writer = PredictionWriter(tmp_path / "out.csv")
    make_trainer(writer).predict(ImageClassifier("test_resnet", 4, weights=None), data, return_predictions=False)
    header, line = csv.reader((tmp_path / "out.csv").open())
    assert header == ["file", "prediction", "class class file", "class prediction", "index", "class file"]
    assert line[0] == "it.jpg"
    assert sum(map(float, line[2:])) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "names", [["set", "class set", "class class set"], ["=a", "'=a"], ["a\rb", "a b", "a b"], ["label", "label"]]
)
def test_no_two_columns_have_one_name(names: list[str]) -> None:
    others = ["file", "label", "set"]
    found = [*others, *class_headings(names, others)]
    assert len(set(found)) == len(found) == len(others) + len(names)
    (header,) = csv.reader(csv_text([found]).splitlines())
    assert header == found


@pytest.mark.parametrize("names", [["a|b", "c"], ["a\\", "b"], ["a\\|b", "|", "\\"], ["plain"], ["a", "b"]])
def test_names_in_one_cell_can_be_told_apart(names: list[str]) -> None:
    reader = csv.reader([joined_names(names)], delimiter="|", escapechar="\\", quoting=csv.QUOTE_NONE)
    assert next(reader) == names


def test_bad_images_with_odd_names(tmp_path: Path) -> None:
    write_bad_images(tmp_path / "bad.csv", [BadImage("train", 3, "=cmd.jpg", "-broken-")])
    (line,) = csv.DictReader((tmp_path / "bad.csv").open())
    assert line == {"split": "train", "row": "3", "path": "'=cmd.jpg", "reason": "'-broken-"}
