import builtins
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import quick_first
from safetensors.torch import load_file
from tiny_clip import make_tiny_clip, register_tiny_clip
from torch import Tensor, nn

from nc_finetune import ImageClassifier
from nc_finetune.backbones import OpenClipBackbone, TimmBackbone
from nc_finetune.deployment.export import export_onnx, export_program, export_state_dict
from nc_finetune.heads import CosineHead, DiscriminantHead, ZeroShotHead
from nc_finetune.methods import (
    AdapterTuning,
    FullFinetuning,
    LayerFinetuning,
    LayerReadout,
    LinearProbe,
    ProbeFirst,
    SkipConnectionFinetuning,
)

NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "test_resnet": ("layer2.0", {}),
    "test_vit": ("blocks.3", {"img_size": 32}),
    "tf_efficientnet_lite0": ("blocks.3.0", {}),
}
PLAIN: dict[str, Callable[[str], Any]] = {
    "linear_probe": lambda key: LinearProbe(),
    "layer_ft": LayerFinetuning,
    "full_ft": lambda key: FullFinetuning(),
}
every_net = pytest.mark.parametrize("net", NETS)


def make_model(net: str, build: Callable[[str], Any] = SkipConnectionFinetuning, **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    key, model_options = NETS[net]
    return ImageClassifier(TimmBackbone(net, None, model_options), 3, method=build(key), **options).eval()


def make_images(number: int = 5, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(256, (number, 3, size, size), generator=generator, dtype=torch.uint8)


def run_onnx(path: Path, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@every_net
@pytest.mark.parametrize("method", PLAIN)
def test_state_dict_is_loaded_by_timm_itself(net: str, method: str, tmp_path: Path) -> None:
    model = make_model(net, PLAIN[method])
    path = tmp_path / "it.safetensors"
    export_state_dict(model, path)
    plain = timm.create_model(net, num_classes=3, checkpoint_path=str(path), **NETS[net][1]).eval()
    images = make_images() / 255
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(plain(model.backbone.normalize(images)), expected, rtol=0, atol=1e-5)


def test_state_dict_of_a_discriminant_is_that_of_a_linear_layer(tmp_path: Path) -> None:
    model, path = make_model("test_resnet", LayerFinetuning, head=DiscriminantHead), tmp_path / "it.safetensors"
    export_state_dict(model, path)
    plain = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(path)).eval()
    images = make_images() / 255
    with torch.no_grad():
        torch.testing.assert_close(plain(model.backbone.normalize(images)), model(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (SkipConnectionFinetuning, {}, "SCL-FT adds to the features.*export a program or ONNX"),
        (LayerFinetuning, {"head": lambda d, k: nn.Sequential(nn.Linear(d, k))}, "the head is a Sequential"),
        (LayerFinetuning, {"head": partial(nn.Linear, bias=False)}, "other weights, e.g. fc.bias"),
    ],
)
def test_state_dict_is_refused_where_timm_computes_something_else(
    build: Callable[[str], Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export_state_dict(make_model("test_resnet", build, **options), tmp_path / "it.safetensors")
    assert not list(tmp_path.iterdir())


def test_state_dict_of_a_readout_is_refused(tmp_path: Path) -> None:
    model = make_model("test_resnet", lambda key: LayerReadout())
    with pytest.raises(ValueError, match=r"readout adds to the features.*export a program or ONNX"):
        export_state_dict(model, tmp_path / "it.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("net", ["test_vit", "tf_efficientnet_lite0"])
def test_a_readout_is_one_program_from_images_to_logits(net: str, tmp_path: Path) -> None:
    model = make_model(net, lambda key: LayerReadout("all"))
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(model.head.weight.shape) * 20)  # as large as that of a solved one
    export_program(model, tmp_path / "it.pt2", image_size=32, uint8=True)
    export_onnx(model, tmp_path / "it.onnx", image_size=32, uint8=True)
    program = torch.export.load(tmp_path / "it.pt2").module()
    for number in (1, 5):
        images = make_images(number)
        with torch.no_grad():
            expected = model(images)
            torch.testing.assert_close(program(images), expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(run_onnx(tmp_path / "it.onnx", images), expected, rtol=1e-4, atol=1e-3)


def make_clip(features: Any, method: Any, head: Any = nn.Linear) -> ImageClassifier:
    torch.manual_seed(1)
    backbone = OpenClipBackbone(register_tiny_clip(), None, features=features)
    model = ImageClassifier(backbone, 3, method=method, head=head).eval()
    with torch.no_grad():  # as a training would
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.rand(parameter.shape)
    return model


@pytest.mark.parametrize(
    "method", quick_first(1, [LayerFinetuning(), FullFinetuning(), ProbeFirst(LayerFinetuning())]), ids=str
)
@pytest.mark.parametrize("kind", ["pre_projection", "projected", "zero_shot"])
def test_state_dict_of_a_clip_is_loaded_by_open_clip_itself(kind: str, method: Any, tmp_path: Path) -> None:
    head = partial(ZeroShotHead, embeddings=torch.randn(3, 48), trainable=True) if kind == "zero_shot" else nn.Linear
    model = make_clip("projected" if kind == "zero_shot" else kind, method, head)
    export_state_dict(model, tmp_path / "it.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"it.safetensors", "it.head.safetensors"}
    visual = make_tiny_clip(seed=2).visual
    visual.load_state_dict(load_file(tmp_path / "it.safetensors"))
    rows, images = load_file(tmp_path / "it.head.safetensors"), make_images() / 255
    with torch.no_grad():
        if kind == "pre_projection":
            visual.proj = None
        features = visual(model.backbone.normalize(images))
        features = nn.functional.normalize(features) if kind == "zero_shot" else features
        logits = nn.functional.linear(features, rows["weight"], rows.get("bias"))
        torch.testing.assert_close(logits, model(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "head", "message"),
    [
        (SkipConnectionFinetuning(), nn.Linear, "SCL-FT adds to the features"),
        (
            AdapterTuning(rank=2, target_modules=["mlp.c_fc"]),
            nn.Linear,
            r"other weights, e.g. transformer\.resblocks\.0\.mlp",
        ),
        (
            LayerFinetuning(),
            CosineHead,
            "with a linear or a zero-shot one, got 'tiny-clip-for-tests' with a CosineHead",
        ),
    ],
)
def test_state_dict_of_a_clip_is_refused_where_open_clip_computes_something_else(
    method: Any, head: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export_state_dict(make_clip("pre_projection", method, head), tmp_path / "it.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("net", quick_first(1, ["test_resnet", "test_vit"]))
def test_skip_survives_in_the_program_at_any_batch_size(net: str, tmp_path: Path) -> None:
    model = make_model(net)
    export_program(model, tmp_path / "it.pt2", image_size=32)
    program = torch.export.load(tmp_path / "it.pt2").module()
    without = make_model(net, LayerFinetuning)
    for number in (1, 5):
        images = make_images(number) / 255
        with torch.no_grad():
            torch.testing.assert_close(program(images), model(images), rtol=0, atol=1e-6)
            assert not torch.allclose(program(images), without(images), atol=1e-3)


@pytest.mark.parametrize(
    "method",
    quick_first(
        1,
        [
            SkipConnectionFinetuning(scale="matched", join="before_norm"),
            AdapterTuning(rank=2),
            SkipConnectionFinetuning(scale="learned", pooling="average"),
            ProbeFirst(SkipConnectionFinetuning()),
        ],
    ),
    ids=["matched", "lora", "learned", "lp-ft"],
)
def test_program_of_a_clip_is_the_model_at_any_batch_size(method: Any, tmp_path: Path) -> None:
    model = make_clip("pre_projection", method)
    export_program(model, tmp_path / "it.pt2", image_size=32)  # traced with two images, checked with three
    images = make_images(1) / 255
    with torch.no_grad():
        logits = torch.export.load(tmp_path / "it.pt2").module()(images)
        torch.testing.assert_close(logits, model(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("net", "uint8"), quick_first(1, [("test_resnet", False), ("test_vit", True)]))
def test_onnx_logits_are_the_model_s(net: str, uint8: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = make_model(net)
    export_onnx(model, tmp_path / "it.onnx", image_size=32, uint8=uint8)
    assert [path.name for path in tmp_path.iterdir()] == ["it.onnx"]
    for number in (1, 5):
        images = make_images(number) if uint8 else make_images(number) / 255
        with torch.no_grad():
            expected = model(images)
        torch.testing.assert_close(run_onnx(tmp_path / "it.onnx", images), expected, rtol=0, atol=1e-4)


def test_export_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nc_finetune.deployment.export._trace", lambda model, size, uint8, coverage: trace_of_another(size, uint8)
    )
    trace = __import__("nc_finetune.deployment.export", fromlist=["_"])

    def trace_of_another(size: int | None, uint8: bool) -> Any:
        monkeypatch.undo()
        return trace._trace(make_model("test_resnet", LayerFinetuning), size, uint8, None)

    with pytest.raises(RuntimeError, match=r"differ from the model's by .* more than 0.0001"):
        export_program(make_model("test_resnet"), tmp_path / "it.pt2", image_size=32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_missing_extra_is_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf"exporting to ONNX needs the package '{missing}'.*nc-finetune\[export\]"):
        export_onnx(make_model("test_resnet"), tmp_path / "it.onnx", image_size=32)


@pytest.mark.parametrize("export", [export_state_dict, export_program, export_onnx])
def test_the_end_of_the_name_says_what_it_is(export: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got 'it\.bin'"):
        export(make_model("test_resnet"), tmp_path / "it.bin")


@pytest.mark.parametrize("dtype", quick_first(1, [torch.float64, torch.bfloat16]))
def test_models_of_another_precision_are_exported(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_model("test_resnet").to(dtype)
    export_program(model, tmp_path / "it.pt2")
    export_onnx(model, tmp_path / "it.onnx")
    images = make_images(size=model.backbone.preprocessing.image_size) / 255
    with torch.no_grad():
        torch.testing.assert_close(run_onnx(tmp_path / "it.onnx", images), model.float()(images), rtol=0, atol=1e-4)
