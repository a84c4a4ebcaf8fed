"""From a folder to a model: whatever is given, whenever it is stopped."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import quick_first
from PIL import Image
from safetensors.torch import load_file, save_file
from tuning_photos import write_photos

import nc_finetune
from nc_finetune.backbones import TimmBackbone
from nc_finetune.classifier import DivergedError
from nc_finetune.cli.app import main
from nc_finetune.deployment import load_delta, predict_folder
from nc_finetune.functional import temperature
from nc_finetune.tuning import Tuned, judged, search
from nc_finetune.tuning.folder import TuneFolder
from nc_finetune.tuning.work import Clock, Work

LABELS = torch.arange(3).repeat_interleave(12)  # of write_photos
QUICK: dict[str, Any] = {"backbones": ["test_resnet=null"], "image_size": 32, "batch_size": 8, "minutes": 0.01}


def tune(source: Path | str, out: Path, **options: Any) -> Tuned:
    return nc_finetune.tune(source, out, **{**QUICK, **options})


@pytest.fixture
def network(tmp_path: Path) -> str:
    """A network whose weights are in a file, so that its models can be loaded anywhere."""
    path = tmp_path / "weights.safetensors"
    state = TimmBackbone("test_resnet", None).model.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return f"test_resnet={path}"


def test_first_answer_is_a_model_that_predicts(photos: Path, tmp_path: Path, network: str) -> None:
    lines: list[str] = []
    found = tune(photos, tmp_path / "out", backbones=[network], tell=lines.append)
    assert lines[0] == "36 images of 3 classes, 12 each"
    assert found.estimate.images == 36
    assert found.estimate.low < found.estimate.accuracy <= found.estimate.high
    assert found.test is None
    assert "not tried for want of time" in found.decision
    assert any("side FT" in name for name in found.left_out)
    page = found.report.read_text()
    assert "readout, 32 pixels" in page
    assert "<script" not in page
    loaded = load_delta(found.model_file).eval()
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded(images), found.model(images))
    assert loaded.doubt is not None
    assert loaded.doubt.numbers.tolist() == [36, 36]
    assert loaded.doubt.sources.tolist() == [1, 1]
    again = tune(photos, tmp_path / "out", backbones=[network])  # from what is kept of the readout
    assert again.model.doubt is not None
    assert torch.equal(again.model.doubt.scores, loaded.doubt.scores)
    predict_folder(found.model_file, photos, tmp_path / "all.csv")
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert sum(row["file"].split("/")[0] == row["label"] for row in rows) > 18


@pytest.mark.parametrize("place", quick_first(1, [-1, -2]))  # the mean with the readout, and alone
def test_what_is_tuned_is_judged_on_folds_and_fitted_to_all(
    photos: Path, tmp_path: Path, network: str, short_fits: None, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.setattr("nc_finetune.tuning.pipeline.best_of", lambda judged, labels: judged[place])
    monkeypatch.setattr("nc_finetune.tuning.judged.best_of", lambda judged, labels: judged[place])
    monkeypatch.setattr(search.Search, "_behind", lambda self, part: None)
    lines: list[str] = []
    found = tune(photos, tmp_path / "out", backbones=[network], minutes=60, tell=lines.append)
    best = found.judged[place]
    assert best.candidate is not None
    assert best.name in found.decision
    assert "at the only learning rate that was tried" in found.decision
    assert f"{best.name}: fitted to all 36 images, 1 epochs" in lines
    assert not found.left_out
    names = [one.name for one in found.judged]
    assert any("side FT" in name for name in names)
    assert any("full FT" in name for name in names)
    loaded = load_delta(found.model_file).eval()
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), found.model(images))
    assert loaded.doubt is not None
    assert loaded.doubt.numbers.tolist() == [36, 36]
    assert loaded.doubt.temperature.item() == pytest.approx(temperature(best.logits, LABELS).item(), rel=1e-4)
    assert loaded.doubt.is_too_sure == (place == -2)
    assert loaded.doubt.is_too_sure == any("new ones look stranger than they are" in line for line in lines)
    again = tune(photos, tmp_path / "out", backbones=[network], minutes=60)
    assert again.decision == found.decision


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_stopped_anywhere_it_comes_to_the_same_model(photos: Path, tmp_path: Path, short_fits: None) -> None:
    """Each process gets a few lines further than the one before."""
    lines: list[str] = []
    whole = tune(photos, tmp_path / "whole", minutes=60, tell=lines.append)

    def stopped_behind(line: int) -> Callable[[str], None]:
        places = iter(range(line))

        def tell(_: str) -> None:
            if next(places, None) is None:
                raise Killed

        return tell

    for line in (0, 1, 2, 3, 5, len(lines) - 2):
        with pytest.raises(Killed):
            tune(photos, tmp_path / "out", minutes=60, tell=stopped_behind(line))
    found = tune(photos, tmp_path / "out", minutes=60)
    assert found.decision == whole.decision
    assert found.estimate == whole.estimate
    ours, theirs = load_file(found.model_file), load_file(whole.model_file)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.slow
def test_more_time_tries_what_was_left_out(photos: Path, tmp_path: Path, short_fits: None) -> None:
    assert tune(photos, tmp_path / "out").left_out
    assert not tune(photos, tmp_path / "out", minutes=60).left_out


def test_a_test_split_is_looked_at_once_in_the_end(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos" / "train")
    write_photos(tmp_path / "photos" / "val", each=2, seed=1)
    write_photos(tmp_path / "photos" / "test", each=5, seed=2)
    lines: list[str] = []
    found = tune(tmp_path / "photos", tmp_path / "out", tell=lines.append)
    assert lines[0] == "42 images of 3 classes, 14 each"  # those of the validation split among them
    assert found.test is not None
    assert found.test.images == 15
    assert any(line.startswith("the test split: ") for line in lines)


def test_images_are_held_out_for_a_test_on_demand(photos: Path, tmp_path: Path) -> None:
    found = tune(photos, tmp_path / "out", test="0.25")
    assert found.test is not None
    assert (found.test.images, found.estimate.images) == (9, 27)


@pytest.mark.slow
def test_another_folder_is_a_test_by_the_names_of_its_classes(photos: Path, tmp_path: Path) -> None:
    other = write_photos(tmp_path / "other", each=4, seed=5)
    shutil.rmtree(other / "class0")
    found = tune(photos, tmp_path / "out", test=str(other))
    assert found.test is not None
    assert found.test.images == 8
    assert found.test.accuracy > 0.5


def test_another_folder_of_other_classes_is_refused(photos: Path, tmp_path: Path) -> None:
    other = write_photos(tmp_path / "other", each=4)
    (other / "class0").rename(other / "dog")
    with pytest.raises(ValueError, match=r"has classes that .* has not: 'dog'"):
        tune(photos, tmp_path / "out", test=str(other))


def test_broken_images_are_left_out_and_said(photos: Path, tmp_path: Path) -> None:
    (photos / "class0" / "0.png").write_bytes(b"no image")
    lines: list[str] = []
    found = tune(photos, tmp_path / "out", tell=lines.append)
    assert found.estimate.images == 35
    assert any("class0/0.png" in line and "left out" in line for line in lines)


def test_broken_test_images_are_said_and_not_counted(photos: Path, tmp_path: Path) -> None:
    other = write_photos(tmp_path / "other", each=2, seed=5)
    (other / "class0" / "0.png").write_bytes(b"no image")
    lines: list[str] = []
    found = tune(photos, tmp_path / "out", test=str(other), tell=lines.append)
    assert found.test is not None
    assert found.test.images == 5
    assert f"note: 1 images of {other} do not decode and are left out: 0.png" in lines
    assert "looked at once" in (page := found.report.read_text(encoding="utf-8"))
    assert re.search(r"looked at once: [^<]*, 5 images\.", page)


def test_random_weights_are_said_to_be_lost(photos: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    found = tune(photos, tmp_path / "out", tell=lines.append)
    assert next(line for line in lines if "random" in line).startswith("note: the weights of test_resnet are random")
    with pytest.raises(ValueError, match=r"another base: .*; it names none, as of random ones, .* load_delta\(p"):
        load_delta(found.model_file)


def test_a_note_is_told_once(tmp_path: Path) -> None:
    lines: list[str] = []
    work = Work(TuneFolder(tmp_path), *[cast(Any, None)] * 3, Clock(1), 0, lines.append)
    for note in ("a", "b", "a"):
        work.notes[note] = None
        work.tell_notes()
    assert lines == ["note: a", "note: b"]


def test_images_without_a_label_are_predicted(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", each=8)
    files = sorted(folder.rglob("*.png"))
    lines = [
        f"{file.relative_to(folder)},{file.parent.name if number % 4 else ''}" for number, file in enumerate(files)
    ]
    (folder / "labels.csv").write_text("\n".join(["file,label", *lines]) + "\n")
    tune(folder / "labels.csv", tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert len(rows) == 6
    assert {row["label"] for row in rows} <= {"class0", "class1", "class2"}


def test_changed_images_start_anew_and_are_said(photos: Path, tmp_path: Path) -> None:
    tune(photos, tmp_path / "out")
    write_photos(photos, each=1, seed=9, start=50)
    (photos / "class0" / "3.png").unlink()
    lines: list[str] = []
    tune(photos, tmp_path / "out", tell=lines.append)
    assert lines[0].startswith("since the last time 3 images are new, 1 images are gone; what was found then lies in")
    assert (tmp_path / "out" / "earlier" / "1" / "model.safetensors").is_file()


def test_what_is_refused_leaves_what_was_found_before(photos: Path, tmp_path: Path) -> None:
    found = tune(photos, tmp_path / "out")
    before = found.model_file.read_bytes()
    with pytest.raises((ValueError, FileNotFoundError), match="no weights at"):
        tune(photos, tmp_path / "out", backbones=[f"test_resnet={tmp_path / 'none.safetensors'}"])
    with pytest.raises(ValueError, match="takes no images of 33 pixels"):
        tune(photos, tmp_path / "out", backbones=["test_vit=null"], image_size=33)
    shutil.copy(photos / "class0/0.png", photos / "class1/copy.png")
    with pytest.raises(ValueError, match="1 images are in two classes"):
        tune(photos, tmp_path / "out")
    assert found.model_file.read_bytes() == before
    assert not (tmp_path / "out/earlier").exists()


@pytest.mark.slow
def test_groups_are_never_parted(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", each=8)
    for file in folder.rglob("*.png"):
        file.rename(file.with_name(f"person{int(file.stem) // 2}_{file.name}"))
    found = tune(folder, tmp_path / "out", group=r"class\d/person\d")
    assert found.estimate.images == 24
    assert found.model.doubt is not None
    assert found.model.doubt.numbers.tolist() == [24, 24]


def double(photos: Path) -> None:
    shutil.copy(photos / "class0" / "0.png", photos / "class1" / "copy.png")


def one_each(photos: Path) -> None:
    for file in photos.rglob("*.png"):
        if file.stem != "0":
            file.unlink()


def one_class(photos: Path) -> None:
    for label in (1, 2):
        shutil.rmtree(photos / f"class{label}")


def no_images(photos: Path) -> None:
    for file in photos.rglob("*.png"):
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (double, "1 images are in two classes: .* mend the images, or go on as they are with --force"),
        (one_each, "each of the 3 classes of .* has one image alone"),
        (one_class, "^the train split has one class only"),
        (no_images, "no folders of images"),
    ],
)
def test_what_would_spoil_a_model_is_refused(
    photos: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(photos)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tune(photos, tmp_path / "out")


@pytest.mark.slow
def test_doubled_images_are_gone_on_with_by_force(photos: Path, tmp_path: Path) -> None:
    double(photos)
    lines: list[str] = []
    tune(photos, tmp_path / "out", force=True, tell=lines.append)
    assert any(line.startswith("note: 1 images are in two classes") for line in lines)


def test_leaked_test_images_are_refused(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos" / "train")
    write_photos(tmp_path / "photos" / "test")
    with pytest.raises(ValueError, match="36 images of the test split are among those to learn from"):
        tune(tmp_path / "photos", tmp_path / "out")


@pytest.mark.slow
def test_two_images_a_class_give_a_readout(photos: Path, tmp_path: Path) -> None:
    for file in photos.rglob("*.png"):
        if int(file.stem) > 1:
            file.unlink()
    lines: list[str] = []
    found = tune(photos, tmp_path / "out", minutes=60, tell=lines.append)
    assert found.judged[0].readout is not None
    assert any("the readout stays" in line for line in lines)
    assert found.estimate.low < found.estimate.high


def test_more_images_than_memory_holds_are_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nc_finetune.tuning.readouts._MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"features of 36 images take .* fit a readout of so many by a recipe"):
        tune(photos, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 0}, "minutes must be above 0"),
        ({"backbones": []}, "at least one backbone"),
        ({"backbones": ["resnet_of_nobody"]}, "resnet_of_nobody"),
        ({"test": "0"}, "holds no image"),
    ],
)
def test_bad_arguments_get_one_clear_error(photos: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune(photos, tmp_path / "out", **options)


@pytest.mark.parametrize("known", [True, False])
def test_command_prints_each_step_and_what_to_type_next(
    photos: Path, tmp_path: Path, network: str, capsys: pytest.CaptureFixture[str], known: bool
) -> None:
    out = tmp_path / "out"
    words = [
        "tune",
        str(photos),
        "--out",
        str(out),
        "--backbones",
        network if known else "test_resnet=null",
        "--minutes",
        "0.01",
        "--image-size",
        "32",
    ]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "readout of test_resnet at 32 pixels" in printed
    # Random weights are in no file: no command can load that model again.
    assert (f"nc-finetune predict {out / 'model.safetensors'} FOLDER" in printed) == known
    assert f"report: {out / 'report.html'}" in printed
    assert main([*words, "--minutes", "0"]) == 2
    assert "must be above 0" in capsys.readouterr().err


def test_copies_of_an_image_do_not_judge_each_other(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for label in range(2):
        folder = tmp_path / "photos" / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(12):  # noise: nothing to be recognised
            image = Image.fromarray(generator.integers(256, size=(32, 32, 3), dtype=np.uint8))
            image.save(folder / f"{number}.png")
            shutil.copy(folder / f"{number}.png", folder / f"copy{number}.png")
    assert tune(tmp_path / "photos", tmp_path / "out").estimate.accuracy < 0.8


def test_rows_in_another_order_start_anew(photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*.png"))
    lines = [f"{file.relative_to(photos)},{file.parent.name}" for file in files]
    table = photos / "labels.csv"
    table.write_text("\n".join(["file,label", *lines]) + "\n")
    first = tune(table, tmp_path / "out")
    table.write_text("\n".join(["file,label", *reversed(lines)]) + "\n")
    said: list[str] = []
    again = tune(table, tmp_path / "out", tell=said.append)
    assert said[0].startswith("since the last time images are in another order")
    assert again.estimate.accuracy == pytest.approx(first.estimate.accuracy, abs=0.05)


@pytest.mark.slow
def test_a_fit_to_all_that_diverges_leaves_the_next_best(
    photos: Path, tmp_path: Path, short_fits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(self: search.Search, best: Any) -> None:
        raise DivergedError("the training loss was not finite")

    monkeypatch.setattr(search.Search, "fit_to_all", diverge)
    real = judged.best_of
    monkeypatch.setattr(
        "nc_finetune.tuning.pipeline.best_of",
        lambda those, labels: those[-1] if those[-1].candidate else real(those, labels),
    )
    lines: list[str] = []
    found = tune(photos, tmp_path / "out", minutes=60, tell=lines.append)
    assert any("fitted to all images: the training loss was not finite" in line for line in lines)
    assert "chosen: readout" in found.decision
    assert found.report.is_file()


def test_several_networks_are_in_the_estimate_and_their_time_counts_once(photos: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    tune(photos, tmp_path / "out", backbones=["test_resnet=null", "test_efficientnet=null"], tell=lines.append)
    assert sum(line.startswith("readout of ") for line in lines) == 2
    assert any(line.startswith("network: test_") for line in lines)


def test_the_same_folder_by_another_name_is_the_same(photos: Path, tmp_path: Path) -> None:
    tune(photos, tmp_path / "out")
    lines: list[str] = []
    tune(f"{photos}/", tmp_path / "out", tell=lines.append)
    assert not any("since the last time" in line for line in lines)


def test_a_class_of_which_no_image_decodes_is_named(photos: Path, tmp_path: Path) -> None:
    for file in (photos / "class2").iterdir():
        file.write_bytes(b"no image")
    lines: list[str] = []
    tune(photos, tmp_path / "out", tell=lines.append)
    assert any(line.startswith("note: no image of 'class2' decodes") for line in lines)


def test_no_image_decodes(photos: Path, tmp_path: Path) -> None:
    for file in photos.rglob("*.png"):
        file.write_bytes(f"no image {file}".encode())
    with pytest.raises(ValueError, match=r"no training image of .* decodes"):
        tune(photos, tmp_path / "out")


def test_sizes_that_a_network_does_not_take_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="test_vit takes no images of 100 pixels; leave image_size out, or try 96"):
        tune(photos, tmp_path / "out", backbones=["test_vit=null"], image_size=100)


def test_one_group_a_class_leaves_nothing_to_be_judged(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="or leave group out, and trust no estimate"):
        tune(photos, tmp_path / "out", group=r"class\d")


def test_a_share_beside_a_test_split_is_refused(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos" / "train")
    write_photos(tmp_path / "photos" / "test", each=5, seed=2)
    with pytest.raises(ValueError, match=r"has a test split of its own, of 15 images, which is taken"):
        tune(tmp_path / "photos", tmp_path / "out", test="0.2")


def test_images_of_the_test_that_cannot_be_used_are_named(photos: Path, tmp_path: Path) -> None:
    other = shutil.copytree(photos, tmp_path / "other")
    one_class(other)
    with pytest.raises(ValueError, match=f"^--test {other}: the train split has one class only"):
        tune(photos, tmp_path / "out", test=str(other))
