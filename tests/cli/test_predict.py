"""``nc-finetune predict MODEL FOLDER``: which words it is told by, columns of tables, notes on what is left out."""

import csv
from pathlib import Path

import pytest
import torch
from made_up_images import write_images

from nc_finetune import ImageClassifier, save_delta
from nc_finetune.backbones import TimmBackbone
from nc_finetune.cli import main
from nc_finetune.cli.app import _predicts_by_a_model


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_model_and_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuned").mkdir()
    torch.save(TimmBackbone("test_resnet", None).model.state_dict(), tmp_path / "base.pt")
    model = ImageClassifier(TimmBackbone("test_resnet", str(tmp_path / "base.pt")), 2)
    save_delta(model, tmp_path / "tuned/model.safetensors", ["cat", "dog"])
    (tmp_path / "tuned/facts.json").write_text("{}")
    write_images(tmp_path / "photos", "1.png", "2.png", "inner/3.png")


def predicted(path: str) -> list[str]:
    with Path(path).open() as file:
        return [row["file"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("model", ["tuned/model.safetensors", "tuned"])
def test_options_may_stand_before_the_model(model: str) -> None:
    Path("p.csv").write_text("of an earlier time")
    assert main(["predict", "--image-size", "32", "--out", "p.csv", "--trust", model, "photos"]) == 0
    assert predicted("p.csv") == ["1.png", "2.png", "inner/3.png"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("digits/efficientnet_lite0_scl_ft --ckpt_path tuned/model.safetensors", False),
        ("digits/efficientnet_lite0_scl_ft --trainer.default_root_dir tuned --predictions.path photos/1.png", False),
        ("--config digits/efficientnet_lite0_scl_ft --data.source photos", False),
        ("backbones/resnet50 datasets/dtd methods/scl_ft", False),
        ("--trust hub:user/name photos", True),
        ("--batch-size=2 x.ckpt photos", True),
        ("mine.yaml photos", True),
        ("digits/efficientnet_lite0_scl_ft photos", False),
        ("--help", False),
        ("", False),
    ],
)
def test_values_of_options_are_no_models(words: str, expected: bool) -> None:
    Path("mine.yaml").touch()
    assert _predicts_by_a_model(words.split()) == expected


@pytest.mark.parametrize("words", ["tuned_typo photos", "--out p.csv tuned_typo photos", "tuned_typo photos/1.png"])
def test_a_model_that_is_not_there_is_no_unknown_recipe(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *words.split()]) == 2
    said = capsys.readouterr().err
    assert "there is no model or recipe at tuned_typo: give the folder that nc-finetune tune wrote" in said
    assert said.count("\n") == 1


def test_a_file_that_is_no_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "tuned/facts.json", "photos"]) == 2
    assert "tuned/facts.json is no model: a model is a .safetensors" in capsys.readouterr().err


def test_columns_of_a_table_are_named_by_options() -> None:
    Path("photos/mine.csv").write_text("photo,kind,other\n1.png,cat,x\n2.png,,x\n3.png,,\n")
    words = ["predict", "tuned", "photos/mine.csv", "--image-size", "32", "--image-column", "photo"]
    assert main([*words, "--out", "all.csv"]) == 0
    assert main([*words, "--label-column", "kind", "--out", "rest.csv"]) == 0
    assert [Path(name).name for name in predicted("all.csv")] == ["1.png", "2.png", "3.png"]
    assert [Path(name).name for name in predicted("rest.csv")] == ["2.png", "3.png"]


def test_columns_of_a_folder_of_images_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "tuned", "photos", "--label-column", "kind"]) == 2
    assert "label_column is of a table, and photos is a folder of images" in capsys.readouterr().err


def test_files_that_are_left_out_are_noted_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/inner/4.svg").write_text("no image for Pillow")
    for _ in range(2):
        assert main(["predict", "tuned", "photos", "--image-size", "32"]) == 0
        said = capsys.readouterr().err
        assert "note: photos: 1 files were left out (1 .svg), e.g. inner/4.svg" in said
        assert "UserWarning" not in said
