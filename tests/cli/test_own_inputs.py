"""No command writes over the model, the images or the labels that it reads."""

from pathlib import Path

import pytest
import torch
from made_up_images import write_images, write_parquet

from nc_finetune.cli import main
from nc_finetune.cli.own_inputs import refuse_overwriting
from nc_finetune.cli.recipes import find_recipe

REFUSED = "would be written over, and is read here"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ("predict tuned/model.safetensors photos --out tuned/model.safetensors", "tuned/model.safetensors"),
        ("predict tuned photos --out ./photos/../tuned/model.safetensors", "tuned/model.safetensors"),
        ("predict tuned photos --unlabelled-report tuned/model.safetensors", "tuned/model.safetensors"),
        ("predict tuned photos --out link.csv", "tuned/model.safetensors"),
        ("predict tuned photos/labels.csv --out photos/labels.csv", "photos/labels.csv"),
        ("predict tuned photos --out photos/labels.csv", "photos/labels.csv"),
        ("predict digits/efficientnet_lite0_linear_probe --data.source photos --predictions.path photos/labels.csv",
         "photos/labels.csv"),
        ("predict digits/efficientnet_lite0_linear_probe --predictions.path mine.ckpt --ckpt_path mine.ckpt",
         "mine.ckpt"),
        ("data check photos/labels.csv --out photos/labels.csv", "photos/labels.csv"),
        ("data check photos --out photos/labels.csv", "photos/labels.csv"),
        ("export tuned --to state-dict --out tuned/model.safetensors", "tuned/model.safetensors"),
        ("export head.head.safetensors --to state-dict --out head.safetensors", "head.head.safetensors"),
        ("push tuned user/name --card-only tuned/model.safetensors", "tuned/model.safetensors"),
        ("push tuned user/name --card-only tuned/facts.json", "tuned/facts.json"),
        ("rank photos --backbones test_resnet=null --out photos/labels.csv", "photos/labels.csv"),
        ("rank sklearn:digits --backbones test_resnet=mine.ckpt --out mine.ckpt", "mine.ckpt"),
        ("profile test_resnet profile/profile.csv --weights null --no-trials", "profile/profile.csv"),
    ],
)  # fmt: skip
def test_an_output_that_is_read_is_refused_before_any_work(
    words: str, read: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, "photos/1.png", "photos/2.png", "photos/3.png", "photos/4.png")
    (tmp_path / "photos/labels.csv").write_text("file,label\n1.png,a\n2.png,b\n3.png,a\n4.png,b\n")
    (tmp_path / "profile").mkdir()
    (tmp_path / "tuned").mkdir()
    for name in (
        "tuned/model.safetensors",
        "tuned/facts.json",
        "head.head.safetensors",
        "profile/profile.csv",
    ):
        (tmp_path / name).write_text("what is read")
    torch.save({"state_dict": {}}, tmp_path / "mine.ckpt")  # Lightning looks into it first
    (tmp_path / "link.csv").symlink_to(tmp_path / "tuned/model.safetensors")
    before = (tmp_path / read).read_bytes()
    assert main(words.split()) == 2
    assert REFUSED in capsys.readouterr().err
    assert (tmp_path / read).read_bytes() == before


def test_a_recipe_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = find_recipe("digits/efficientnet_lite0_linear_probe").read_bytes()
    (tmp_path / "mine.yaml").write_bytes(recipe)
    assert main(["predict", "mine.yaml", "--predictions.path", "mine.yaml"]) == 2
    assert REFUSED in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_bytes() == recipe


def write_source(folder: Path) -> None:
    write_images(folder, "cat/1.png", "train/2.png", "3.png")
    write_parquet(folder / "test.parquet", [0, 1])
    for name in ("labels.csv", "metadata.jsonl", "predictions.csv", "check.json"):
        (folder / name).write_text("file,label\n")


@pytest.mark.parametrize("name", ["cat/1.png", "3.png", "test.parquet", "labels.csv", "metadata.jsonl"])
def test_images_and_tables_of_a_folder_are_read(tmp_path: Path, name: str) -> None:
    write_source(tmp_path / "photos")
    with pytest.raises(ValueError, match=rf"^photos/{name} {REFUSED} as photos or a part of it; give what is written"):
        refuse_overwriting([Path("photos", name)], "photos")


def test_a_table_of_a_split_is_read(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png")
    for name in ("train_labels.csv", "test.csv", "mine.csv"):
        (tmp_path / name).write_text("file,label\n")
    refuse_overwriting([Path("mine.csv")], str(tmp_path))
    for name in ("train_labels.csv", "test.csv"):
        with pytest.raises(ValueError, match=REFUSED):
            refuse_overwriting([Path(name)], str(tmp_path))


def test_what_a_link_in_a_folder_leads_to_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("file,label\n")
    write_images(tmp_path, "photos/1.png")
    (tmp_path / "photos/labels.csv").symlink_to(tmp_path / "mine.csv")
    (tmp_path / "photos/gone.csv").symlink_to(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match=REFUSED):
        refuse_overwriting([Path("mine.csv")], "photos")


@pytest.mark.parametrize(
    "name", ["photos/predictions.csv", "photos/check.json", "photos/new.csv", "elsewhere/labels.csv"]
)
def test_what_an_earlier_run_wrote_may_be_written_again(tmp_path: Path, name: str) -> None:
    write_source(tmp_path / "photos")
    write_source(tmp_path / "elsewhere")
    refuse_overwriting([Path(name), None], "photos", "sklearn:digits", "hub:user/name", None)
