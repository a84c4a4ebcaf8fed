"""Recipes of backbones: built as they are without memory, trained in a small form under the same name."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import yaml
from conftest import quick_where
from open_clip import factory

from nc_finetune.backbones import Backbone, create_backbone
from nc_finetune.cli import main
from nc_finetune.cli.recipes import find_recipe, list_recipes
from nc_finetune.methods import LayerReadout

# Those of the slides' table have tests of their own: test_recipe_cells.py.
SLIDES = {"clip_vit_b32", "clip_vit_b32_projected", "resnet50", "vit_b32"}
NAMES = [name.removeprefix("backbones/") for name in list_recipes() if name.startswith("backbones/")]
TODAY = [name for name in NAMES if name not in SLIDES]
# One of each way to write a recipe, which run always.
FEW = {"dinov3_vit_s16", "siglip2_vit_b16"}
LICENCES = {
    "apache-2.0": "Apache-2.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "dinov3-license": "DINOv3 License",
    "mit": "MIT",
}
VIT = {"depth": 2, "embed_dim": 24, "num_heads": 2}
STAGES = {"depths": (1, 1, 2, 1)}
# By the beginning of a network's name: what makes it small, and an image size that it takes.
SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "vit_": (VIT, 32),
    "vit_small_patch14": (VIT, 28),
    "vit_base_patch14": (VIT, 28),
    "eva02_": (VIT, 28),
    "convnextv2_": ({**STAGES, "dims": (8, 16, 24, 32)}, 32),
    "swinv2_": ({**STAGES, "embed_dim": 12, "num_heads": (1, 2, 2, 4)}, 32),
    "tf_efficientnetv2_": ({}, 32),
    "mobilenetv4_": ({}, 32),
    "open_clip:ViT": ({"layers": 2, "width": 32, "head_width": 16}, 224),
}
today = pytest.mark.parametrize("recipe", quick_where(FEW.__contains__, TODAY))


def read(recipe: str) -> tuple[str, str, dict[str, Any]]:
    """Return the network's name, its weights and its options, as a recipe has them."""
    model = yaml.safe_load(find_recipe(f"backbones/{recipe}").read_text(encoding="utf-8"))["model"]
    if isinstance(model["backbone"], str):
        return model["backbone"], model["weights"], {}
    named = model["backbone"]["init_args"]
    return named["name"], named["weights"], named.get("model_options", {})


def header(recipe: str) -> dict[str, str]:
    """Return what the lines of a recipe's header say, by the word that opens them."""
    lines = re.findall(r"^# (.*)$", find_recipe(f"backbones/{recipe}").read_text(encoding="utf-8"), re.MULTILINE)
    text = "\n".join(lines).replace("\n        ", " ")
    return dict(re.findall(r"^(\w+): +(.+)$", text, re.MULTILINE))


def without_weights(recipe: str) -> list[str]:
    _, _, options = read(recipe)
    return ["--model.backbone.init_args.weights" if options else "--model.weights", "null"]


def without_memory(recipe: str) -> Backbone:
    name, _, options = read(recipe)
    with torch.device("meta"):
        return create_backbone(name, None, model_options=options)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Let networks be built in a small form under their own names; return an image size for each."""
    create, sizes = timm.create_model, dict[str, int]()

    def find(name: str) -> tuple[dict[str, Any], int]:
        return SMALL[max((start for start in SMALL if name.startswith(start)), key=len)]

    def create_small(name: str, **options: Any) -> torch.nn.Module:
        made: torch.nn.Module = create(name, **{**find(name)[0], **options})
        return made

    monkeypatch.setattr(timm, "create_model", create_small)
    for recipe in TODAY:
        name, _, _ = read(recipe)
        sizes[recipe] = find(name)[1]
        if name.startswith("open_clip:"):
            plain = name.removeprefix("open_clip:")
            config = open_clip.get_model_config(plain)
            text = {**config["text_cfg"], "width": 16, "heads": 2, "layers": 1}
            vision = {**config["vision_cfg"], **find(name)[0]}
            monkeypatch.setitem(factory._MODEL_CONFIGS, plain, {**config, "vision_cfg": vision, "text_cfg": text})
    return sizes


def test_every_family_has_a_recipe() -> None:
    assert len(TODAY) == 12
    families = ("dinov2", "dinov3", "siglip", "siglip2", "clip", "convnextv2", "eva02", "swinv2")
    assert all(any(name.startswith(f"{family}_") for name in TODAY) for family in families)
    assert {"efficientnetv2_s", "mobilenetv4_medium"} <= set(TODAY)


@pytest.mark.parametrize("recipe", TODAY)
def test_the_weights_exist_and_get_images_as_they_want_them(recipe: str) -> None:
    name, tag, _ = read(recipe)
    data = yaml.safe_load(find_recipe(f"backbones/{recipe}").read_text(encoding="utf-8"))["data"]
    if name.startswith("open_clip:"):
        plain = name.removeprefix("open_clip:")
        assert tag in open_clip.list_pretrained_tags_by_model(plain)
        size, interpolation = open_clip.get_model_config(plain)["vision_cfg"]["image_size"], "bicubic"
    else:
        assert f"{name}.{tag}" in timm.list_pretrained(f"{name}.*")
        wanted = timm.get_pretrained_cfg(f"{name}.{tag}")
        size, interpolation = wanted.input_size[-1], wanted.interpolation
        assert header(recipe)["Rights"].startswith(LICENCES[wanted.license])
    if "dinov2" in name:  # pre-trained on 224 pixels, and on 518 for its last steps
        assert (data["image_size"], size) == (224, 518)
        data["image_size"] = size
    assert data == {"image_size": size, "interpolation": interpolation}


@today
def test_the_header_names_the_layers_and_how_to_start(recipe: str) -> None:
    backbone, said = without_memory(recipe), header(recipe)
    block, parameters = backbone.get_layer(backbone.middle_block), sum(p.numel() for p in backbone.parameters())
    share = 100 * sum(p.numel() for p in block.parameters()) / parameters
    *half, _penultimate = LayerReadout("later_half").layer_names(backbone)
    assert said["Layers"] == (
        f"key block {backbone.middle_block}, {share:.1f} % of the network, unless a method names another; later half of"
        f" a readout {half[0]} to {half[-1]}."
    )
    start = re.fullmatch(rf"nc-finetune fit backbones/{recipe} (datasets/\w+) (methods/\w+)", said["Start"])
    assert start is not None
    assert all(find_recipe(part) for part in start.groups())


@pytest.mark.parametrize("recipe", ["dinov3_vit_s16", "dinov3_vit_b16"])
def test_dinov3_is_read_by_its_class_token(recipe: str) -> None:
    backbone = without_memory(recipe)
    assert (backbone.num_prefix_tokens, backbone.has_class_token) == (5, True)
    assert backbone.model.global_pool == "token"


@today
@pytest.mark.parametrize("method", ["scl_ft", pytest.param("readout", marks=pytest.mark.slow)])
def test_a_recipe_trains_a_step_without_weights_and_network(
    recipe: str, method: str, small: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "data.source": "sklearn:digits",
        "data.samples_per_class": "2",
        "data.image_size": str(small[recipe]),
        "data.batch_size": "4",
        "data.num_workers": "0",
        "trainer.fast_dev_run": "true",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
    }
    options = [word for key, value in given.items() for word in (f"--{key}", value)]
    assert main(["fit", f"backbones/{recipe}", f"methods/{method}", *without_weights(recipe), *options]) == 0
