"""The networks that are promised by name, to the parameter."""

from dataclasses import dataclass
from functools import cache

import open_clip
import pytest
import timm
import torch
from conftest import quick_where
from torch import Tensor, nn

from nc_finetune.backbones import Backbone, OpenClipBackbone, TimmBackbone, create_backbone, watch_outputs

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


@dataclass(frozen=True)
class Expected:
    parameters: int
    num_features: int
    number: int
    first: str
    last: str
    widths: tuple[int, int]
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    image_size: int = 224


LAYERS, STAGES, BLOCKS = ("layer1.0", "layer4.2"), ("stages.0.blocks.0", "stages.3.blocks.2"), ("blocks.0", "blocks.11")
MOBILE, RESBLOCKS = ("blocks.0.0", "blocks.6.0"), ("transformer.resblocks.0", "transformer.resblocks.11")
DENSE = ("features.denseblock1", "features.denseblock4")
NAMED = {
    "resnet18": Expected(11_176_512, 512, 8, "layer1.0", "layer4.1", (64, 512), IMAGENET),
    "resnet50": Expected(23_508_032, 2048, 16, *LAYERS, (256, 2048), IMAGENET),
    "resnet101": Expected(42_500_160, 2048, 33, *LAYERS, (256, 2048), IMAGENET),
    "densenet169": Expected(12_484_480, 1664, 7, *DENSE, (256, 1664), IMAGENET),
    "vit_base_patch16_224": Expected(85_798_656, 768, 12, *BLOCKS, (768, 768), HALF),
    "vit_base_patch32_224": Expected(87_455_232, 768, 12, *BLOCKS, (768, 768), HALF),
    "vit_small_patch16_224": Expected(21_665_664, 384, 12, *BLOCKS, (384, 384), HALF),
    "convnext_tiny": Expected(27_820_128, 768, 18, *STAGES, (96, 768), IMAGENET),
    "tf_efficientnet_lite0": Expected(3_371_008, 1280, 16, *MOBILE, (16, 320), HALF),
    "tf_efficientnet_lite1": Expected(4_135_680, 1280, 21, *MOBILE, (16, 320), HALF, 240),
    "tf_efficientnet_lite2": Expected(4_811_072, 1280, 21, *MOBILE, (16, 352), HALF, 260),
    "mobilenetv3_large_100": Expected(4_202_032, 1280, 16, *MOBILE, (16, 960), IMAGENET),
    "open_clip:ViT-B-32": Expected(87_849_216, 768, 12, *RESBLOCKS, (768, 768), CLIP),
    "open_clip:ViT-B-16": Expected(86_192_640, 768, 12, *RESBLOCKS, (768, 768), CLIP),
    "open_clip:RN50": Expected(38_316_896, 2048, 16, *LAYERS, (256, 2048), CLIP),
}
# Small images for the nets that take them; the others are made for theirs.
SMALL = ["resnet18", "resnet50", "densenet169", "convnext_tiny", "tf_efficientnet_lite0", "mobilenetv3_large_100"]


# Those that run always.
FEW = {"resnet50", "densenet169", "vit_base_patch32_224", "tf_efficientnet_lite0", "open_clip:ViT-B-32"}
every_name = pytest.mark.parametrize("name", quick_where(FEW.__contains__, NAMED))


@cache
def named(name: str) -> Backbone:
    """Build one of them, without memory, once."""
    with torch.device("meta"):
        return create_backbone(name, None).eval()


@every_name
def test_parameters_are_those_without_a_classifier(name: str) -> None:
    assert sum(parameter.numel() for parameter in named(name).parameters()) == NAMED[name].parameters


@every_name
def test_blocks_run_in_order_and_pool_to_their_widths(name: str) -> None:
    backbone, expected, pooled = named(name), NAMED[name], dict[str, tuple[int, ...]]()

    def take(block: str, output: Tensor) -> None:
        pooled[block] = tuple(backbone.pool(output).shape)

    size = backbone.preprocessing.image_size
    with watch_outputs(backbone.model, backbone.block_names, take), torch.device("meta"):
        penultimate = backbone(torch.zeros(2, 3, size, size))
    assert tuple(pooled) == backbone.block_names
    assert (len(pooled), *backbone.block_names[:1], backbone.block_names[-1]) == (
        expected.number,
        expected.first,
        expected.last,
    )
    assert (pooled[expected.first], pooled[expected.last]) == ((2, expected.widths[0]), (2, expected.widths[1]))
    assert penultimate.shape == (2, expected.num_features) == (2, backbone.num_features)


@every_name
def test_preprocessing_is_that_of_the_weights(name: str) -> None:
    preprocessing = named(name).preprocessing
    assert (preprocessing.mean, preprocessing.std) == NAMED[name].normalisation
    assert (preprocessing.image_size, preprocessing.interpolation) == (NAMED[name].image_size, "bicubic")


@pytest.mark.parametrize(
    ("name", "block", "parameters"),
    [
        ("resnet50", "layer3.0", 1_512_448),
        ("vit_base_patch32_224", "blocks.5", 7_087_872),
        ("open_clip:ViT-B-32", "transformer.resblocks.5", 7_087_872),
    ],
)
def test_key_blocks_have_the_published_size(name: str, block: str, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in named(name).get_layer(block).parameters()) == parameters


@pytest.mark.parametrize("name", quick_where({"resnet18", "tf_efficientnet_lite0"}.__contains__, SMALL))
def test_features_of_small_images_are_what_timms_classifier_sees(name: str) -> None:
    backbone = TimmBackbone(name, None).eval()
    whole = timm.create_model(name, num_classes=7).eval()
    assert whole.load_state_dict(backbone.model.state_dict(), strict=False).unexpected_keys == []
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = whole.get_classifier()(backbone(images))
        torch.testing.assert_close(logits, whole(backbone.normalize(images)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_base_patch32_224"])
def test_transformers_take_small_images_if_built_for_them(name: str) -> None:
    backbone = TimmBackbone(name, None, {"img_size": 32, "depth": 1}).eval()
    assert backbone(torch.rand(2, 3, 32, 32)).shape == (2, NAMED[name].num_features)


@pytest.fixture(scope="module")
def clip_vit_b_32() -> tuple[nn.Module, OpenClipBackbone]:
    """open_clip's own model, and the backbone of the same random weights."""
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-32").eval()
    torch.manual_seed(0)
    return clip, OpenClipBackbone("ViT-B-32", None).eval()


@pytest.mark.slow
def test_zero_shot_logits_of_clip_vit_b_32_are_open_clips(clip_vit_b_32: tuple[nn.Module, OpenClipBackbone]) -> None:
    clip, backbone = clip_vit_b_32
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    classes = ["cat", "dog", "aeroplane"]
    rows = open_clip.build_zero_shot_classifier(clip, open_clip.get_tokenizer("ViT-B-32"), classes, ["a {}."])
    embeddings = backbone.text_embeddings([f"a {name}." for name in classes])
    with torch.no_grad():
        expected = clip.encode_image(backbone.normalize(images), normalize=True) @ rows
        logits = nn.functional.normalize(backbone.project(backbone(images)), dim=1) @ embeddings.T
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
