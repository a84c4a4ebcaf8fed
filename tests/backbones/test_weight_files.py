"""Weights as people have them: of training scripts, behind wrappers, of another image size or number of channels."""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import onnxruntime
import pytest
import timm
import torch
from conftest import TrainerFactory, quick_where
from safetensors.torch import save_file
from torch import Tensor

from nc_finetune import ImageClassifier, ImageData, load_delta, save_delta
from nc_finetune.backbones import TimmBackbone, weights_hash
from nc_finetune.backbones._weights.state_dicts import read_state_dict
from nc_finetune.deployment.export import export_onnx, export_program
from nc_finetune.methods import FullFinetuning, SkipConnectionFinetuning

State = dict[str, Tensor]


def trained(name: str = "test_resnet", **options: Any) -> tuple[State, State]:
    torch.manual_seed(0)
    return timm.create_model(name, **options).state_dict(), timm.create_model(name, **options).state_dict()


def prefixed(state: State, *prefixes: str) -> State:
    return {"".join(prefixes) + name: value for name, value in state.items()}


WRITERS: dict[str, Callable[[State, State], dict[str, Any]]] = {
    "plain": lambda state, other: state,
    "lightning's key": lambda state, other: {"state_dict": state, "epoch": 3},
    "model": lambda state, other: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
    "timm's script": lambda state, other: {
        "arch": "test_resnet",
        "args": argparse.Namespace(model="test_resnet", lr=0.1, mean=(0.5, 0.5)),
        "state_dict": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "version": 2,
        "metric": 71.2,
    },
    "averaged": lambda state, other: {"state_dict": other, "state_dict_ema": state},
    "averaged, other name": lambda state, other: {"model": other, "model_ema": state},
    "data parallel": lambda state, other: prefixed(state, "module."),
    "compiled": lambda state, other: prefixed(state, "_orig_mod."),
    "both": lambda state, other: {"model": prefixed(state, "_orig_mod.", "module.")},
    "both, the other way": lambda state, other: {"state_dict": prefixed(state, "module.", "_orig_mod.")},
    "deepspeed": lambda state, other: {"module": state, "global_steps": 10},
}


@pytest.mark.parametrize("writer", WRITERS)
def test_checkpoints_of_training_scripts_are_read(writer: str, tmp_path: Path) -> None:
    state, other = trained()
    torch.save(WRITERS[writer](state, other), tmp_path / "it.pth")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backbone = TimmBackbone("test_resnet", str(tmp_path / "it.pth"))
    assert all(torch.equal(value, state[name]) for name, value in backbone.model.state_dict().items())
    said = [str(warning.message) for warning in caught if "the average" in str(warning.message)]
    assert len(said) == writer.startswith("averaged")


def test_a_common_beginning_of_names_is_no_wrapper(tmp_path: Path) -> None:
    save_file({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "it.safetensors")
    assert set(read_state_dict(tmp_path / "it.safetensors")) == {"module.a", "b"}


@pytest.mark.parametrize(
    "content", [{"model": {"a": 1}}, {"state_dict": {"a": "b"}}, [1, 2], {"a": argparse.Namespace()}]
)
def test_what_holds_no_weights_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "it.pth")
    with pytest.raises(ValueError, match="must hold a state dict of tensors"):
        TimmBackbone("test_resnet", str(tmp_path / "it.pth"))


RESIZED: dict[str, dict[str, Any]] = {
    "test_vit": {"img_size": 96},
    "test_vit3": {"img_size": 96},
    "deit_tiny_patch16_224": {"img_size": 96},
    "beit_base_patch16_224": {"img_size": 96},
    "eva02_tiny_patch14_224": {"img_size": 112},
    "swin_tiny_patch4_window7_224": {"img_size": 128, "window_size": 4},
}


@pytest.mark.parametrize("name", quick_where(lambda name: "beit" not in name, RESIZED))
def test_positions_are_resampled_as_timm_does(name: str, tmp_path: Path) -> None:
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=7)
    save_file({key: value.contiguous() for key, value in plain.state_dict().items()}, tmp_path / "it.safetensors")
    overlay = {"file": str(tmp_path / "it.safetensors"), "num_classes": 7, "hf_hub_id": None, "url": ""}
    wanted = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, **RESIZED[name])
    found = TimmBackbone(name, str(tmp_path / "it.safetensors"), RESIZED[name]).model.state_dict()
    for key, value in wanted.state_dict().items():
        if key in found:
            assert torch.equal(value, found[key]), key


def test_another_architecture_is_still_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("test_efficientnet").state_dict(), tmp_path / "it.safetensors")
    with pytest.raises(ValueError, match="does not hold weights of test_vit"):
        TimmBackbone("test_vit", str(tmp_path / "it.safetensors"), {"img_size": 96})


# --- other numbers of channels


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_filters_of_colour_images_are_adapted_as_timm_does(channels: int, tmp_path: Path) -> None:
    state, _ = trained("test_resnet", num_classes=7)
    save_file(state, tmp_path / "it.safetensors")
    overlay = {"file": str(tmp_path / "it.safetensors"), "num_classes": 7, "hf_hub_id": None, "url": ""}
    options = {"in_chans": channels}
    wanted = timm.create_model("test_resnet", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, **options)
    backbone = TimmBackbone("test_resnet", str(tmp_path / "it.safetensors"), options)
    assert all(torch.equal(value, wanted.state_dict()[key]) for key, value in backbone.model.state_dict().items())
    assert backbone(torch.rand(2, channels, 32, 32)).shape == (2, backbone.num_features)


def test_packaged_weights_take_grey_images() -> None:
    grey = TimmBackbone("tf_efficientnet_lite0", "package", {"in_chans": 1})
    colour = TimmBackbone("tf_efficientnet_lite0", "package")
    stem, wanted = grey.model.conv_stem.weight, colour.model.conv_stem.weight  # type: ignore[union-attr]
    torch.testing.assert_close(stem, wanted.sum(1, keepdim=True))
    images = torch.randint(256, (2, 1, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(grey.eval()(images), colour.eval()(images.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_one_channel_goes_through_training_delta_and_export(tmp_path: Path, make_trainer: TrainerFactory) -> None:
    L.seed_everything(0, verbose=False)
    backbone = TimmBackbone("test_resnet", None, {"in_chans": 1})
    contiguous = {name: value.contiguous() for name, value in backbone.model.state_dict().items()}
    save_file(contiguous, tmp_path / "base.safetensors")
    backbone = TimmBackbone("test_resnet", str(tmp_path / "base.safetensors"), {"in_chans": 1})
    model = ImageClassifier(backbone, 10, method=SkipConnectionFinetuning())
    data = ImageData("sklearn:digits", image_size=32, samples_per_class=2, num_workers=0)  # colours, made grey
    make_trainer(limit_val_batches=2).fit(model, datamodule=data)
    images = torch.randint(256, (3, 1, 32, 32), dtype=torch.uint8)
    expected = model.eval()(images)
    torch.testing.assert_close(model(images.expand(-1, 3, -1, -1)), expected, rtol=1e-4, atol=1e-5)
    save_delta(model, tmp_path / "delta.safetensors")
    assert torch.equal(load_delta(tmp_path / "delta.safetensors").eval()(images), expected)
    export_program(model, tmp_path / "it.pt2", image_size=32, uint8=True)
    program = torch.export.load(tmp_path / "it.pt2").module()
    torch.testing.assert_close(program(images), expected, rtol=1e-4, atol=1e-4)
    export_onnx(model, tmp_path / "it.onnx", image_size=32, uint8=True)
    session = onnxruntime.InferenceSession(tmp_path / "it.onnx", providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_another_number_of_channels_are_refused(channels: int) -> None:
    backbone = TimmBackbone("test_resnet", None, {"in_chans": channels})
    with pytest.raises(ValueError, match=rf"images must have shape \(N, {channels}, H, W\), got \(2, 2, 32, 32\)"):
        backbone(torch.rand(2, 2, 32, 32))


# --- networks that give no vector, and layouts in memory


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("test_resnet", {"global_pool": ""}, "global_pool='' leaves maps or tokens"),
        ("test_vit", {"global_pool": ""}, "global_pool='' leaves maps or tokens"),
        ("test_resnet", {"features_only": True}, "'features_only' is no option for timm here"),
    ],
)
def test_what_gives_no_vector_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimmBackbone(name, None, options)


def test_a_backbone_that_gives_maps_is_refused_when_it_runs() -> None:
    class Maps(TimmBackbone):
        def penultimate(self, inputs: Tensor) -> Tensor:
            features: Tensor = self.model.forward_features(inputs)  # type: ignore[operator]
            return features

    with pytest.raises(ValueError, match=r"must have shape \(N, D\), got \(2, 96, 1, 1\)"):
        Maps("test_resnet", None)(torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize("name", ["lambda_resnet26t", "lambda_resnet50ts", "resnet26t", "halonet26t", "botnet26t_256"])
def test_networks_with_weights_of_any_rank_are_built_and_tuned(name: str) -> None:
    backbone = TimmBackbone(name, None)
    model = ImageClassifier(backbone, 3, method=FullFinetuning()).eval()
    size = backbone.preprocessing.image_size
    assert model(torch.rand(1, 3, size, size)).shape == (1, 3)
    before = weights_hash(backbone.model)
    backbone.set_channels_last(False)
    assert weights_hash(backbone.model) == before
