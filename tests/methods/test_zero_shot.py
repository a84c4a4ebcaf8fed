"""Zero-shot as a method, and as the start of a trained head, against open_clip's own code."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import open_clip
import pytest
import torch
from made_up_images import write_parquet
from tiny_clip import make_tiny_clip, register_tiny_clip
from torch import nn
from torch.utils.data import DataLoader

from nc_finetune import ImageClassifier, ImageData, load_delta, save_delta
from nc_finetune.backbones import OpenClipBackbone, TimmBackbone
from nc_finetune.cli import main
from nc_finetune.heads import ZeroShotHead, prompt_templates
from nc_finetune.methods import LinearProbe, ZeroShot
from nc_finetune.run._cell.run import run_cell
from nc_finetune.run.cell import Settings
from nc_finetune.run.grid import BackboneSpec, DatasetSpec, Grid, HeadSpec, MethodSpec

MODEL = register_tiny_clip()
NAMES = ["cat", "dog", "Boeing 707"]
TrainerFactory = Callable[..., L.Trainer]
LoaderFactory = Callable[..., DataLoader[Any]]


@pytest.fixture(scope="module")
def clip() -> Any:
    return make_tiny_clip()


@pytest.fixture(scope="module")
def weights(clip: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(clip.state_dict(), path)
    return str(path)


def make_model(weights: str, method: Any = None, head: Any = None, features: Any = "projected") -> ImageClassifier:
    backbone = OpenClipBackbone(MODEL, weights, features=features)
    return ImageClassifier(backbone, 3, method=method or ZeroShot("cifar10", NAMES), head=head)


def test_logits_are_those_of_open_clip(
    clip: Any, weights: str, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    model, loader = make_model(weights), make_loader()
    (measured,) = make_trainer().test(model, loader, verbose=False)
    templates = [template.format for template in prompt_templates("cifar10")]  # type: ignore[union-attr]
    rows = open_clip.build_zero_shot_classifier(clip, open_clip.get_tokenizer(MODEL), NAMES, templates)
    images, labels = (torch.cat(part) for part in zip(*loader, strict=True))
    with torch.no_grad():
        embeddings = clip.encode_image(model.backbone.normalize(images), normalize=True)
        expected = clip.logit_scale.exp() * embeddings @ rows
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-4)
    assert measured["test/accuracy"] == pytest.approx((expected.argmax(1) == labels).float().mean().item())


def test_a_fit_changes_nothing_and_the_delta_is_a_few_rows(
    weights: str, tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    model, trainer = make_model(weights), make_trainer(max_epochs=2)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    trainer.fit(model, make_loader(), make_loader())
    assert all(torch.equal(before[name], value) for name, value in model.backbone.state_dict().items())
    assert (model.tuned_parameters, model.total_parameters) == (0, sum(p.numel() for p in model.backbone.parameters()))
    save_delta(model, tmp_path / "it.safetensors")
    assert (tmp_path / "it.safetensors").stat().st_size < 64 * 1024
    loaded, images = load_delta(tmp_path / "it.safetensors"), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), model.eval()(images))


def test_a_trained_head_starts_from_the_zero_shot_logits(
    weights: str, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    def head(width: int, classes: int) -> nn.Module:
        return ZeroShotHead(width, classes, trainable=True, templates="cifar10", class_names=NAMES)

    fixed, trained = make_model(weights), make_model(weights, LinearProbe(), head)
    images = torch.rand(4, 3, 32, 32)
    make_trainer().validate(fixed, make_loader(), verbose=False)
    trainer = make_trainer()
    trainer.validate(trained, make_loader(), verbose=False)
    with torch.no_grad():
        start = fixed.eval()(images)
        assert torch.equal(trained.eval()(images), start)
        assert trained.tuned_parameters == 3 * 48
        make_trainer().fit(trained, make_loader())
        assert not torch.equal(trained.eval()(images), start)


def test_class_names_come_from_the_data(weights: str, tmp_path: Path, make_trainer: TrainerFactory) -> None:
    write_parquet(tmp_path / "pets.parquet", [0, 1] * 10)
    data = ImageData(str(tmp_path), image_size=32)
    backbone = OpenClipBackbone(MODEL, weights, features="projected")
    model = ImageClassifier(backbone, 2, method=ZeroShot(["a picture of a {}."]))
    make_trainer().test(model, datamodule=data, verbose=False)
    rows = backbone.text_embeddings([f"a picture of a {name}." for name in data.class_names])
    torch.testing.assert_close(model.head.weight, backbone.text_encoder().logit_scale * rows)


def test_it_is_a_cell_of_a_grid_whatever_the_heads(weights: str) -> None:
    grid = Grid(
        backbones=[BackboneSpec(name=f"open_clip:{MODEL}", weights=weights)],
        datasets=[DatasetSpec(source="sklearn:digits", name="digits", image_size=32, val_size=20, test_size=30)],
        methods=[MethodSpec(method="ZeroShot"), MethodSpec(method="LinearProbe", learning_rates=[1e-3])],
        heads=[HeadSpec(), HeadSpec(head="CosineHead")],
        samples_per_class=[2],
        settings=Settings(epochs=3),
    )
    zero_shot, *probes = grid.cells()
    assert [cell.head.head for cell in probes] == ["Linear", "CosineHead"]
    failed = run_cell(zero_shot)
    assert "48 wide, the feature of the backbone 64; build the backbone with features='projected'" in failed.error
    projected = BackboneSpec(**{**vars(zero_shot.backbone), "options": {"features": "projected"}})
    result = run_cell(dataclasses.replace(zero_shot, backbone=projected))
    assert (result.status, result.method, result.head) == ("ok", "zero_shot", "zero_shot_head")
    assert (result.tuned_parameters, result.learning_rate, result.learning_rates) == (0, None, {})
    assert result.nc1 == result.nc1_layers["penultimate"]


def test_recipe_is_evaluated_without_training(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "pets/train.parquet", [0, 1] * 10)
    monkeypatch.chdir(tmp_path)
    options = {
        "model.backbone.init_args.name": MODEL,
        "model.backbone.init_args.weights": weights,
        "model.method.init_args.templates": "oxford_pets",
        "data.source": str(tmp_path / "pets"),
        "data.image_size": "32",
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    assert main(["test", "backbones/clip_vit_b32_projected", "methods/zero_shot", *words]) == 0
    assert "test/accuracy" in capsys.readouterr().out


def test_what_cannot_be_is_refused(weights: str, make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    with pytest.raises(ValueError, match="zero-shot brings its own head, got another one"):
        make_model(weights, head=nn.Linear)
    with pytest.raises(ValueError, match=r"class_names must be 3, one a class, got 2"):
        make_model(weights, ZeroShot(class_names=["cat", "dog"]))
    with pytest.raises(ValueError, match=r"needs as many class names, got 0; data tell theirs by class_names"):
        make_trainer().test(make_model(weights, ZeroShot()), make_loader(), verbose=False)
    timm = ImageClassifier(TimmBackbone("test_resnet", None), 3, method=ZeroShot(class_names=NAMES))
    with pytest.raises(ValueError, match=r"needs a CLIP, 'open_clip:\.\.\.', and 'test_resnet' has no text tower"):
        make_trainer().test(timm, make_loader(), verbose=False)
