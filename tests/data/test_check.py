import json
import shutil
from pathlib import Path

import pytest
from broken_images import BROKEN, encoded, photo, write_broken_folder
from made_up_images import write_images
from tuning_photos import write_photos

from nc_finetune.cli import main
from nc_finetune.data import ImageData, check_data

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


def test_a_clean_source_has_no_faults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "sklearn:digits"]) == 0
    printed = capsys.readouterr().out
    assert "no faults" in printed
    assert "10 classes, one label an image" in printed
    assert "pixels: 8-8 (median 8) x 8-8 (median 8); 1,797 images have a side below 32" in printed
    assert "modes: L 1,797" in printed


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_broken_image_is_listed_with_its_reason(
    tmp_path: Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = write_broken_folder(tmp_path / "pets", 60)
    out = tmp_path / "report.json"
    assert main(["data", "check", str(tmp_path / "pets"), "--workers", workers, "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    assert f"{len(BROKEN)} images that do not decode" in printed
    assert all(str(path) in printed for path in broken)
    report = json.loads(out.read_text())
    assert {bad["path"] for bad in report["broken"]} == set(map(str, broken))
    assert report["images"]["train"] + report["images"]["val"] + report["images"]["test"] == 60 + len(BROKEN)
    assert report["modes"] == {"RGB": 60}


def test_duplicates_and_rare_classes_are_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, number in (("cat", 8), ("dog", 3)):
        for item in range(number):
            write_images(tmp_path / "pets/train", f"{name}/{item}.png", value=item + 20 * (name == "dog"))
    write_images(tmp_path / "pets/test", "cat/x.png", "dog/x.png", value=200)
    shutil.copy(tmp_path / "pets/train/cat/1.png", tmp_path / "pets/test/cat/copy.png")
    write_images(tmp_path / "pets/val", "cat/y.png", "dog/z.png", value=201)
    write_images(tmp_path / "pets/val", "dog/z.png", value=202)
    report = check_data(ImageData(str(tmp_path / "pets")))
    assert [found.second[0] for found in report.duplicates] == ["test"] * len(report.duplicates)
    assert report.rare_classes == {"dog": 3}
    assert main(["data", "check", str(tmp_path / "pets"), "--min-per-class", "4"]) == 1
    printed = capsys.readouterr().out
    assert "images that are in two splits" in printed
    assert "1 classes with too few training images" in printed
    assert "dog: 3" in printed


def test_copies_are_found_in_images_that_nobody_has_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("cat", 0), ("dog", 100)):
        for item in range(6):
            write_images(tmp_path, f"{name}/{item}.png", value=value + item)
    shutil.copy(tmp_path / "cat/0.png", tmp_path / "cat/again.png")
    assert main(["data", "check", str(tmp_path), "--out", str(tmp_path / "report.json")]) == 0
    printed = capsys.readouterr().out
    assert "1 images are copies of another one of their split and class" in printed
    assert "val" not in printed
    shutil.copy(tmp_path / "cat/1.png", tmp_path / "dog/again.png")
    assert main(["data", "check", str(tmp_path), "--out", str(tmp_path / "report.json")]) == 1
    assert f"{tmp_path / 'cat/1.png'} (train) = {tmp_path / 'dog/again.png'} (train), with another label" in (
        capsys.readouterr().out.replace("\n", "")
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["images"] == {"train": 14, "val": 0, "test": 0}
    assert [copy["same_label"] for copy in report["copies"]] == [True, False]


def test_images_without_a_label_are_decoded_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path, *(f"train/{name}/{item}.png" for name in ("cat", "dog") for item in range(2)))
    write_images(tmp_path, "test/whole.png")
    (tmp_path / "test/torn.png").write_bytes(b"no image")
    assert main(["data", "check", str(tmp_path), "--min-per-class", "2"]) == 1
    printed, said = capsys.readouterr()
    assert said.startswith("note: the test split has no labels")
    assert "1 images that do not decode" in printed
    assert str(tmp_path / "test/torn.png") in printed


def test_few_images_are_looked_at_as_well_as_many(tmp_path: Path) -> None:
    for item in range(2):
        write_images(tmp_path, f"cat/{item}.png", f"dog/{item}.jpg", value=item)
    assert main(["data", "check", str(tmp_path), "--min-per-class", "2"]) == 0


def test_sizes_and_modes(tmp_path: Path) -> None:
    for number, (size, mode) in enumerate([((40, 30), "RGB"), ((100, 50), "L"), ((64, 90), "RGBA")] * 4):
        path = tmp_path / f"{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(photo(*size, seed=number).convert(mode), "PNG"))
    report = check_data(ImageData(str(tmp_path), test_size=2, val_size=2), min_per_class=1)
    assert report.modes == {"RGB": 4, "L": 4, "RGBA": 4}
    assert (report.widths, report.heights, report.small) == ((40, 64, 100), (30, 50, 90), 4)
    assert report.faults == []


def test_a_source_that_is_none_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "./nowhere"]) == 2
    assert "no folder of images or tables at './nowhere'" in capsys.readouterr().err


def test_names_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("[red]cat[/]", "[/dog]"):
        for item in range(6):
            (tmp_path / "pets" / name.replace("/", "-")).mkdir(parents=True, exist_ok=True)
            path = tmp_path / "pets" / name.replace("/", "-") / f"{item}.png"
            path.write_bytes(encoded(photo(seed=item + 10 * len(name)), "PNG"))
    assert main(["data", "check", str(tmp_path / "pets"), "--min-per-class", "1"]) == 0
    assert "[red]cat[-]" in capsys.readouterr().out


def test_what_is_to_be_known_of_images_is_said_in_words_and_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_photos(tmp_path / "photos")
    (tmp_path / "photos" / "class0" / "one.heif").write_bytes(b"no kind that is read")
    assert main(["data", "check", str(tmp_path / "photos")]) == 1
    printed = "".join(capfd.readouterr())
    assert printed.count("one.heif") == 1
    rank = ["rank", str(tmp_path / "photos"), "--backbones", "test_resnet=null", "--image-size", "32"]
    assert main([*rank, "--out", str(tmp_path / "rank.csv")]) == 0
    said = capfd.readouterr().err
    assert "note: " in said
    assert "one.heif" in said
    assert "Warning" not in printed + said
