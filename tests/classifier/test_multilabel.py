"""Several labels a sample, through whole runs."""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import quick_first
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import ImageClassifier, ImageData, save_delta
from nc_finetune.backbones import TimmBackbone
from nc_finetune.cli import main
from nc_finetune.deployment.predict import predict_folder
from nc_finetune.heads import SimplexETFHead
from nc_finetune.losses import PickAllLabelsLoss
from nc_finetune.methods import FullFinetuning, SkipConnectionFinetuning

TrainerFactory = Callable[..., L.Trainer]


def make_tagged(number: int = 24, dtype: torch.dtype = torch.int64) -> DataLoader[Any]:
    """Return images in which each of three tags lights up a channel; one tag or two a sample."""
    tags = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]).repeat(number // 6, 1)
    noise = torch.rand(number, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = 0.2 * noise + 0.8 * tags[..., None, None]
    return DataLoader(TensorDataset(images, tags.to(dtype)), batch_size=8)


def make_model(**options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(TimmBackbone("test_resnet", None), 3, **{"loss": PickAllLabelsLoss(), **options})


@pytest.mark.parametrize("dtype", quick_first(1, [torch.int64, torch.float32, torch.bool]))
def test_tags_are_learned_and_measured(dtype: torch.dtype, tmp_path: Path, make_trainer: TrainerFactory) -> None:
    model, loader = make_model(method=FullFinetuning(), learning_rate=3e-3), make_tagged(dtype=dtype)
    trainer = make_trainer(max_epochs=12)
    (before,) = trainer.validate(model, loader, verbose=False)
    trainer.fit(model, loader, loader)
    (after,) = trainer.test(model, loader, verbose=False)
    assert set(after) == {"test/loss", "test/average_precision"}
    assert after["test/average_precision"] > 0.95 > before["val/average_precision"]


def test_checkpoints_follow_the_average_precision(tmp_path: Path, make_trainer: TrainerFactory) -> None:
    best = ModelCheckpoint(tmp_path, monitor="val/average_precision", mode="max")
    make_trainer(best, enable_checkpointing=True).fit(make_model(), make_tagged(), make_tagged())
    assert 0 < float(best.best_model_score or 0) <= 1


def test_a_fixed_head_is_turned_to_the_means_of_the_tags(make_trainer: TrainerFactory) -> None:
    head = partial(SimplexETFHead, orientation="class_means")
    model = make_model(head=head, method=SkipConnectionFinetuning("layer2.0"))
    make_trainer().fit(model, make_tagged())
    assert not model.head.awaits_class_means


def test_one_label_a_sample_is_refused_where_several_are_meant(
    make_loader: Callable[..., DataLoader[Any]], make_trainer: TrainerFactory
) -> None:
    with pytest.raises(ValueError, match=r"labels must be 0 or 1 for each class of shape \(4, 3\), got torch.int64"):
        make_trainer().fit(make_model(), make_loader())
    with pytest.raises(ValueError, match=r"for several labels a sample, \(8, 3\), use PickAllLabelsLoss"):
        make_trainer().fit(make_model(loss=None), make_tagged())


def tagged_folder(folder: Path) -> Path:
    """Write images whose channels say their tags, one or two, and their table."""
    sets = [("blue",), ("green",), ("red",), ("red", "green"), ("green", "blue"), ("red", "blue")]
    folder.mkdir()
    lines = ["file,tags"]
    for number, tags in enumerate(sets * 12):
        lit = tuple(230 * (name in tags) for name in ("red", "green", "blue"))
        Image.new("RGB", (32, 32), lit).save(folder / f"{number:02}.png")
        lines.append(f"{number:02}.png,{'|'.join(tags)}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("saved", quick_first(1, ["delta.safetensors", "last.ckpt"]))
def test_a_folder_is_predicted_with_several_labels_an_image(
    saved: str, tmp_path: Path, make_trainer: TrainerFactory
) -> None:
    folder, path = tagged_folder(tmp_path / "tagged"), tmp_path / saved
    torch.save(TimmBackbone("test_resnet", None).model.state_dict(), tmp_path / "base.pt")
    data = ImageData(str(folder), image_size=32, batch_size=8, val_size=12, test_size=12)
    backbone = TimmBackbone("test_resnet", str(tmp_path / "base.pt"))
    model = ImageClassifier(
        backbone, 3, loss=PickAllLabelsLoss(), method=FullFinetuning(), learning_rate=3e-3, head_learning_rate=3e-3
    )
    trainer = make_trainer(max_epochs=15)
    trainer.fit(model, datamodule=data)
    if path.suffix == ".ckpt":
        trainer.save_checkpoint(path)
    else:
        save_delta(model, path)
    predict_folder(path, folder, tmp_path / "out.csv")
    rows = {row["file"]: row for row in csv.DictReader((tmp_path / "out.csv").open())}
    truth = {row["file"]: row["tags"] for row in csv.DictReader((folder / "labels.csv").open())}
    right = sum(set(rows[file]["prediction"].split("|")) == set(tags.split("|")) for file, tags in truth.items())
    assert right / len(truth) > 0.9
    assert all(
        sum(float(row[name]) for name in data.class_names) == pytest.approx(1, abs=1e-4) for row in rows.values()
    )


@pytest.mark.parametrize(("command", "what"), [("profile", "profiles of blocks"), ("rank", "scores of backbones")])
def test_choices_by_single_labels_are_refused(
    command: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tagged_folder(tmp_path / "tagged")
    words = {
        "profile": ["test_resnet", "tagged", "--weights", "null"],
        "rank": ["tagged", "--backbones", "test_resnet=null"],
    }
    assert main([command, *words[command], "--image-size", "32"]) == 2
    assert f"{what} compare images with one label each, those of 'tagged' have several" in capsys.readouterr().err
