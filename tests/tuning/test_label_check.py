"""Wrong labels are found, whatever the source, and what cannot be judged is said."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tuning_photos import write_photos

import nc_finetune.tuning
from nc_finetune.cli import main
from nc_finetune.data import ImageData
from nc_finetune.tuning import LabelCheck
from nc_finetune.tuning.folder import TuneFolder
from nc_finetune.tuning.images import hashes_of
from nc_finetune.tuning.work import Clock, Work

QUICK: dict[str, Any] = {"backbone": "test_resnet=null", "image_size": 32, "batch_size": 16}


def check_labels(source: Path | str, out: Path, **options: Any) -> LabelCheck:
    return nc_finetune.tuning.check_labels(source, out, **{**QUICK, **options})


def write_plain(folder: Path, each: int = 8, seed: int = 0) -> Path:
    """Write images of three colours that any network tells apart."""
    for label, colour in enumerate(((200, 40, 40), (40, 200, 40), (40, 40, 200))):
        for number in range(each):
            path = folder / f"class{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shade = tuple(value + 3 * number + seed for value in colour)
            Image.new("RGB", (32, 32), shade).save(path)
    return folder


def swap(folder: Path, first: str, second: str) -> None:
    """Let two images have each other's labels."""
    shutil.move(folder / first, folder / "other.png")
    shutil.move(folder / second, folder / first)
    shutil.move(folder / "other.png", folder / second)


def rows_of(found: LabelCheck) -> list[dict[str, str]]:
    return list(csv.DictReader(found.table.open(encoding="utf-8")))


def test_swapped_labels_of_all_splits_are_found_and_mended(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    for seed, split in enumerate(("train", "val", "test")):
        write_plain(source / split, each=8, seed=seed)
    swap(source, "train/class0/3.png", "test/class1/2.png")
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    lines: list[str] = []
    found = check_labels(source, tmp_path / "out", tell=lines.append)
    assert lines[0] == "72 images of 3 classes (train 24, val 24, test 24)"
    assert (found.differing, found.judged) == (2, 72)
    assert lines[-1] == str(found)
    rows = rows_of(found)
    assert {(row["file"], row["label"], row["corrected"]) for row in rows} == {
        ("train/class0/3.png", "class0", "class1"),
        ("test/class1/2.png", "class1", "class0"),
    }
    assert {row["split"] for row in rows} == {"train", "test"}
    assert all(float(row["probability_of_label"]) < 0.5 < float(row["probability"]) for row in rows)
    page = found.page.read_text(encoding="utf-8")
    assert page.count("data:image/") == 2 * (1 + 2 * 3)  # each, and three typical ones of both classes
    assert "<script" not in page
    assert f"--apply {found.table}" in page

    assert main(["data", "labels", str(source), "--apply", str(found.table), "--out", str(tmp_path / "new")]) == 0
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
    assert check_labels(tmp_path / "new", tmp_path / "again").differing == 0


def test_no_label_is_suspected_where_none_is_wrong(tmp_path: Path) -> None:
    found = check_labels(write_plain(tmp_path / "photos"), tmp_path / "out")
    assert str(found) == "None of 24 images looks more like another class than its own."
    assert "fold" not in found.page.read_text()
    assert rows_of(found) == []
    assert "Look at these labels" not in found.page.read_text()


def test_the_command_asks_to_apply_a_table_where_it_has_rows_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_plain(tmp_path / "photos")
    words = ["data", "labels", str(source), "--backbone", "test_resnet=null", "--image-size", "32", "--out"]
    assert main([*words, str(tmp_path / "none")]) == 0
    swap(source, "class0/3.png", "class1/2.png")
    assert main([*words, str(tmp_path / "two")]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Table")]
    assert [line.partition(":")[0] for line in said] == [
        "Table, with nothing to correct",
        "Table, to be edited and applied",
    ]


def test_tune_names_the_same_images_and_the_command(tmp_path: Path) -> None:
    source = write_plain(tmp_path / "photos")
    swap(source, "class0/3.png", "class1/2.png")
    lines: list[str] = []
    network = {"backbones": [QUICK["backbone"]], "image_size": 32, "minutes": 0.01}
    nc_finetune.tuning.tune(source, tmp_path / "tuned", tell=lines.append, **network)
    (said,) = [line for line in lines if line.startswith("labels to look at first: ")]
    found = [image.file for image in check_labels(source, tmp_path / "out").suspected]
    assert sorted(found) == ["class0/3.png", "class1/2.png"]
    assert "3.png (class0, looks like class1)" in said
    assert "2.png (class1, looks like class0)" in said
    command = f"nc-finetune data labels {source} --backbone test_resnet=null --image-size 32"
    assert said.endswith(f"; all of them, to be mended: {command}")
    assert main([*command.split()[1:], "--out", str(tmp_path / "typed")]) == 0


def test_tune_names_all_that_it_was_given(tmp_path: Path) -> None:
    source = write_plain(tmp_path / "my photos")
    swap(source, "class0/3.png", "class1/2.png")
    lines = [f"{path.relative_to(source)},{path.parent.name},{path.stem}" for path in source.rglob("*.png")]
    (source / "labels.csv").write_text("\n".join(["picture,kind,person", *lines]) + "\n")
    told: list[str] = []
    options = {"image_column": "picture", "label_column": "kind", "group": "person"}
    network = {"backbones": [QUICK["backbone"]], "image_size": 32, "minutes": 0.01}
    nc_finetune.tuning.tune(source, tmp_path / "tuned", tell=told.append, **network, **options)
    (said,) = [line for line in told if line.startswith("labels to look at first: ")]
    words = "--image-column picture --label-column kind --group person --backbone test_resnet=null --image-size 32"
    assert said.endswith(f": nc-finetune data labels '{source}' {words}")


def test_most_bounds_the_list_and_not_the_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_photos(tmp_path / "photos")
    for number in range(3):
        swap(source, f"class0/{number}.png", f"class1/{number}.png")
    found = check_labels(source, tmp_path / "out", most=2)
    assert len(rows_of(found)) == len(found.suspected) == 2 < found.differing
    monkeypatch.setattr("nc_finetune.tuning.label_files._MOST_SHOWN", 3)
    every = check_labels(source, tmp_path / "every")
    assert every.page.read_text().count("<article") == 3 < len(rows_of(every))
    assert "This page shows the first 3." in every.page.read_text()
    assert [image.file for image in every.suspected[:2]] == [image.file for image in found.suspected]


def test_copies_do_not_vouch_for_each_other(tmp_path: Path) -> None:
    source = write_plain(tmp_path / "photos")
    for number in range(4):  # four copies of a red one among the green ones
        shutil.copy(source / "class0" / "3.png", source / "class1" / f"copy{number}.png")
    lines: list[str] = []
    found = check_labels(source, tmp_path / "out", tell=lines.append)
    assert {row["file"] for row in rows_of(found)} >= {f"class1/copy{number}.png" for number in range(4)}
    assert "note: 1 images are in two classes: 3.png (class0 and class1)" in lines
    said = "5 images are copies of one another, and judged by those outside of their fold alone, one of 3 at the most"
    assert f"note: {said}" in lines
    assert f"{said}." in found.page.read_text()
    assert "all other images" not in found.page.read_text()


def test_what_cannot_be_judged_is_said(tmp_path: Path) -> None:
    source = write_plain(tmp_path / "photos")
    (source / "class0" / "0.png").write_bytes(b"no image")
    (source / "single").mkdir()
    Image.new("RGB", (32, 32), "white").save(source / "single" / "1.png")
    lines: list[str] = []
    found = check_labels(source, tmp_path / "out", tell=lines.append)
    assert found.judged == 23
    notes = " ".join(lines)
    assert "note: 1 images do not decode and are left out: " in notes
    assert (
        "of 1 images nothing can be said, since without them, and their copies, their class has none: single" in notes
    )


def test_groups_do_not_judge_themselves(tmp_path: Path) -> None:
    source = write_plain(tmp_path / "photos", each=9)
    lines: list[str] = []
    found = check_labels(source, tmp_path / "out", group=r"(\d)\.png", tell=lines.append)
    assert found.judged == 27
    said = (
        "each image is judged by those outside of its fold alone, one of 20 at the most, since no fold parts a group,"
    )
    assert f"note: {said} or copies of an image" in lines


def test_images_without_a_label_are_left_alone(tmp_path: Path) -> None:
    write_plain(tmp_path / "photos" / "train")
    (tmp_path / "photos" / "test").mkdir()
    Image.new("RGB", (32, 32), "white").save(tmp_path / "photos" / "test" / "1.png")
    lines: list[str] = []
    assert check_labels(tmp_path / "photos", tmp_path / "out", tell=lines.append).judged == 24
    assert any("the test split has no labels" in line for line in lines)


def test_names_of_files_and_classes_are_not_acted_upon(tmp_path: Path) -> None:
    source = write_plain(tmp_path / "photos")
    (source / "class0").rename(source / "=1+1")
    (source / "class1").rename(source / "<b>x")
    swap(source, "=1+1/3.png", "<b>x/2.png")
    found = check_labels(source, tmp_path / "out")
    page = found.page.read_text()
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page
    assert {row["corrected"] for row in rows_of(found)} == {"'=1+1", "<b>x"}
    assert main(["data", "labels", str(source), "--apply", str(found.table), "--out", str(tmp_path / "new")]) == 0
    assert set(ImageData(str(tmp_path / "new")).class_names) == {"=1+1", "<b>x", "class2"}


def test_errors_say_what_to_do_and_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_plain(tmp_path / "photos")
    singles = write_plain(tmp_path / "singles", each=1)
    (tmp_path / "several").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "several" / "1.png")
    Image.new("L", (8, 8), 9).save(tmp_path / "several" / "2.png")
    (tmp_path / "several" / "labels.csv").write_text("file,label\n1.png,a|b\n2.png,a\n")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "suspects.csv").write_text("edited for hours")
    cases = {
        f"{singles} --out {tmp_path / 'out'}": "each of the 3 classes of",
        f"{tmp_path / 'several'} --out {tmp_path / 'out'}": "have several labels each",
        f"{source} --out {tmp_path / 'used'}": "holds files already, such as suspects.csv",
        f"{source} --out {source / 'labels'}": "lies within",
        f"{source} --out {tmp_path / 'used' / 'suspects.csv'}": "is a file; choose another",
        f"{tmp_path / 'nothing'} --out {tmp_path / 'out'}": "no folder of images or tables",
        f"{tmp_path / 'nothing'} --out {tmp_path / 'used'}": "no folder of images or tables",
        f"{source} --out {tmp_path / 'out'} --backbone nonsense": "nonsense",
        f"{source} --out {tmp_path / 'out'} --apply x.csv --most 9": "--most is for looking for wrong labels",
        f"{source} --out {tmp_path / 'out'} --most 0": "--most: must be a whole number of at least 1",
    }
    for words, said in cases.items():
        assert main(["data", "labels", *words.split()]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "used" / "suspects.csv").read_text() == "edited for hours"
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        check_labels(source, tmp_path / "out", most=0)


def test_files_are_named_from_a_relative_source_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_plain(tmp_path / "photos")
    swap(source, "class0/3.png", "class1/2.png")
    monkeypatch.chdir(tmp_path)
    assert {row["file"] for row in rows_of(check_labels("photos", Path("out")))} == {"class0/3.png", "class1/2.png"}


def test_copies_of_an_image_in_several_groups_do_not_vouch_for_each_other(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "photos")
    for number in range(12):
        shutil.copy(source / "class0" / "3.png", source / "class1" / f"copy{number}.png")
    found = check_labels(source, tmp_path / "out", group=r"(\w+)\.png")
    assert {row["file"] for row in rows_of(found)} >= {f"class1/copy{number}.png" for number in range(12)}


def test_folds_of_a_tuning_part_no_copies_and_no_groups(tmp_path: Path) -> None:
    source = write_plain(tmp_path / "photos")
    for number in range(6):
        shutil.copy(source / "class0" / "3.png", source / "class1" / f"copy{number}.png")
    data = ImageData(str(source), val_size=0, test_size=0, group=r"(\w+)\.png")
    work = Work(TuneFolder(tmp_path / "out"), data, None, hashes_of(data, None), Clock(1), 0, lambda line: None)
    names = [Path(name).stem for name in data.images("train").table.names()]
    bound = {place for place, name in enumerate(names) if name == "3" or name.startswith("copy")}
    assert len(bound) == 9
    assert [len(bound & set(fold.held_out)) for fold in work.folds if bound & set(fold.held_out)] in ([9], [])
    for fold in work.folds:
        assert not {names[place] for place in fold.held_out} & {names[place] for place in fold.trained}
