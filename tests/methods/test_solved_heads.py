"""Heads that are solved beside the readout's: the probe by L-BFGS, and controls."""

from pathlib import Path

import lightning as L
import pytest
import torch

from nc_finetune import ImageClassifier, ImageData, load_delta, save_delta
from nc_finetune.backbones import TimmBackbone
from nc_finetune.deployment.export import export_onnx
from nc_finetune.methods import Control, FinetuningMethod, LinearProbe

KINDS = ("class_priors", "mean_color", "nearest_class_mean", "nearest_neighbors")


def make_method(name: str) -> FinetuningMethod:
    return LinearProbe("lbfgs") if name == "lbfgs" else Control(name)  # type: ignore[arg-type]


def make_model(name: str) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(TimmBackbone("test_resnet", None), 10, method=make_method(name))


def fitted(name: str, data: ImageData, folder: Path) -> tuple[ImageClassifier, L.Trainer]:
    model = make_model(name)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=data)
    return model, trainer


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData("sklearn:digits", image_size=32, samples_per_class=10, val_size=0, test_size=200)


@pytest.mark.parametrize("name", ["lbfgs", *KINDS])
def test_one_pass_solves_the_head_without_validation_and_the_delta_has_it(
    name: str, data: ImageData, tmp_path: Path
) -> None:
    model, trainer = fitted(name, data, tmp_path)
    before = make_model(name).backbone.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())
    assert trainer.global_step <= 1
    accuracy = trainer.test(model, datamodule=data, verbose=False)[0]["test/accuracy"]
    least = {"class_priors": 0.05, "mean_color": 0.0}.get(name, 0.5)  # digits have no colours
    assert accuracy > least
    save_delta(model, tmp_path / "it.safetensors")
    again = load_delta(tmp_path / "it.safetensors", make_model(name))
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), model.eval()(images))


def test_the_probe_says_which_penalty_folds_chose(data: ImageData, tmp_path: Path) -> None:
    _, trainer = fitted("lbfgs", data, tmp_path)
    assert {"train/folds_accuracy", "train/l2", "train/temperature"} <= {*trainer.callback_metrics}


def test_wrong_words_list_the_right_ones() -> None:
    with pytest.raises(ValueError, match="optimizer, lbfgs"):
        LinearProbe("sgd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nearest_neighbors"):
        Control("knn")  # type: ignore[arg-type]


def test_mean_colour_is_that_of_the_image_whatever_its_type() -> None:
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    backbone, control = TimmBackbone("test_resnet", None), Control("mean_color")
    expected = images.double().mean((2, 3)) / 255
    assert torch.allclose(control.features(backbone, images).double(), expected, atol=1e-6)
    assert torch.allclose(control.features(backbone, images / 255).double(), expected, atol=1e-6)


@pytest.mark.slow
def test_neighbours_export_and_vote_the_same_in_half_precision(data: ImageData, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    model, _ = fitted("nearest_neighbors", data, tmp_path)
    model.eval()
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(images).dtype == torch.float32
    export_onnx(model, tmp_path / "net.onnx", image_size=32, uint8=True)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert torch.allclose(torch.tensor(found), expected, atol=1e-4)


def test_neighbours_have_something_that_processes_can_share() -> None:
    assert any(parameter.requires_grad for parameter in make_model("nearest_neighbors").parameters())
