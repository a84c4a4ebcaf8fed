from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from nc_finetune import DeltaCheckpoint, ImageClassifier, ImageData, load_delta
from nc_finetune.backbones import TimmBackbone, weights_hash
from nc_finetune.delta_file import read_delta
from nc_finetune.methods import LayerFinetuning

LoaderFactory = Callable[..., DataLoader[Any]]
TrainerFactory = Callable[..., L.Trainer]


def make_model() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(TimmBackbone("test_resnet", None), 3, method=LayerFinetuning("layer2.0"))


def same(one: ImageClassifier, other: ImageClassifier) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_last_epoch_is_saved_and_nothing_else(
    tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    model, before = make_model(), weights_hash(make_model().backbone.model)
    make_trainer(DeltaCheckpoint(tmp_path / "out"), max_epochs=3, enable_checkpointing=True).fit(model, make_loader())
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "epoch=2-step=9.safetensors"
    assert same(load_delta(path, make_model()), model)
    assert read_delta(path).base_sha256 == before != weights_hash(model.backbone.model)


def test_best_epoch_is_kept_by_a_monitored_metric(
    tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    class Epochs(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            pl_module.log("score", float(trainer.current_epoch == 1))

    callback = DeltaCheckpoint(tmp_path / "out", "{epoch}", monitor="score", mode="max")
    make_trainer(Epochs(), callback, max_epochs=3, enable_checkpointing=True).fit(make_model(), make_loader())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["epoch=1.safetensors"]
    assert callback.best_model_path.endswith("epoch=1.safetensors")


def test_every_n_epochs_and_last(tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    callback = DeltaCheckpoint(tmp_path / "out", "{epoch}", every_n_epochs=2, save_top_k=-1, save_last=True)
    make_trainer(callback, max_epochs=4, enable_checkpointing=True).fit(make_model(), make_loader())
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["epoch=1.safetensors", "epoch=3.safetensors", "last.safetensors"]


def test_run_resumes_from_the_checkpoint_beside_the_delta(
    tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    class Interrupt(L.Callback):
        """Cut the run off at the start of its third epoch, which leaves its schedule as it was planned."""

        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch == 2:
                raise InterruptedError

    def fit(folder: str, *callbacks: L.Callback, **options: Any) -> ImageClassifier:
        model = make_model()
        saving = DeltaCheckpoint(tmp_path / folder, "{epoch}", resumable=True)
        trainer = make_trainer(saving, *callbacks, max_epochs=4, enable_checkpointing=True)
        trainer.fit(model, make_loader(), **options)
        return model

    whole = fit("whole")
    with pytest.raises(InterruptedError):
        fit("parts", Interrupt())
    parts = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert parts == ["epoch=1.ckpt", "epoch=1.safetensors"], "older pairs are removed together"
    resumed = fit("parts", ckpt_path=tmp_path / "parts" / "epoch=1.ckpt")
    assert same(resumed, whole)
    delta = read_delta(tmp_path / "parts" / "epoch=3.safetensors")
    assert delta.base_sha256 == weights_hash(make_model().backbone.model)
    assert same(load_delta(tmp_path / "parts" / "epoch=3.safetensors", make_model()), whole)


def test_class_names_and_image_size_come_from_the_datamodule(tmp_path: Path, make_trainer: TrainerFactory) -> None:
    data = ImageData("sklearn:digits", image_size=16, samples_per_class=1, val_size=20, interpolation="bilinear")
    model = ImageClassifier(TimmBackbone("test_resnet", None), 10)
    make_trainer(DeltaCheckpoint(tmp_path / "out"), enable_checkpointing=True).fit(model, data)
    (path,) = (tmp_path / "out").iterdir()
    config = read_delta(path).config
    assert config.class_names == [str(digit) for digit in range(10)]
    assert (config.image_size, config.interpolation) == (16, "bilinear")
