from collections import Counter
from dataclasses import replace
from itertools import pairwise

import open_clip
import pytest
import timm
import torch
import torchvision
from torch import nn

from nc_finetune.backbones._layers.block_finder import find_block_names, named_layers
from nc_finetune.backbones._layers.block_layout import BlockLayout, find_layout


def kinds(model: nn.Module) -> Counter[str]:
    return Counter(type(model.get_submodule(name)).__name__ for name in find_block_names(model))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", {"BasicBlock": 8}),
        ("resnet50", {"Bottleneck": 16}),
        ("vit_b_32", {"EncoderBlock": 12}),
        ("swin_t", {"SwinTransformerBlock": 12}),
        ("convnext_tiny", {"CNBlock": 18}),
        ("efficientnet_b0", {"MBConv": 16}),
        ("mobilenet_v3_small", {"InvertedResidual": 11}),
        ("efficientnet_v2_s", {"FusedMBConv": 10, "MBConv": 30}),
        ("maxvit_t", {"MBConv": 11, "PartitionAttentionLayer": 22}),
        ("vgg11", {"Conv2d": 8, "Linear": 3}),
        ("googlenet", {"Inception": 9}),
        ("inception_v3", {"InceptionA": 3, "InceptionC": 4, "InceptionE": 2}),
    ],
)
def test_blocks_of_torchvision(name: str, expected: dict[str, int]) -> None:
    with torch.device("meta"):
        assert kinds(getattr(torchvision.models, name)(weights=None)) == expected


def convolutions(*widths: int) -> nn.Sequential:
    return nn.Sequential(
        *(
            layer
            for before, after in pairwise(widths)
            for layer in (nn.Conv2d(before, after, 3), nn.BatchNorm2d(after), nn.ReLU(inplace=True))
        )
    )


class Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.body = convolutions(before, after, after)
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1), nn.BatchNorm2d(after))


DEEP = ("0.0", "0.1", "1.0", "1.1")  # not the two stages


class Holder(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (nn.Sequential(convolutions(3, 8, 8), convolutions(8, 8, 8), nn.Linear(8, 2)), ("0", "1")),
        (nn.Sequential(*(nn.Sequential(convolutions(3, 8, 8), convolutions(8, 8, 8)) for _ in "ab")), DEEP),
        (Holder(conv=nn.Conv2d(3, 8, 3), a=Residual(8, 8), b=Residual(8, 8), fc=nn.Linear(8, 2)), ("a", "b")),
        (Holder(features=convolutions(3, 8, 8), a=Residual(8, 8), fc=nn.Linear(8, 2)), None),
        (Holder(stages=nn.Sequential(convolutions(3, 8), convolutions(8, 8)), fc=nn.Linear(8, 2)), None),
        (Holder(conv1=nn.Conv2d(3, 8, 3), conv2=nn.Conv2d(8, 8, 3), fc=nn.Linear(8, 2)), None),
    ],
)
def test_blocks_of_home_made_networks(net: nn.Module, expected: tuple[str, ...] | None) -> None:
    """Parts of one kind that stand beside each other, and where there are none, all layers of weights."""
    weights = tuple(name for name, part in net.named_modules() if isinstance(part, (nn.Conv2d, nn.Linear)))
    assert find_block_names(net) == (expected or weights)


def test_what_attention_reads_itself_is_no_layer() -> None:
    assert find_block_names(Holder(attention=nn.MultiheadAttention(4, 2), after=nn.Linear(4, 4))) == ("after",)


def test_layers_of_densenet_are_its_blocks() -> None:
    assert kinds(torchvision.models.densenet121()) == {"_DenseBlock": 4, "_Transition": 3}


@pytest.mark.parametrize(
    ("name", "expected"), [("ViT-B-32", "visual.transformer.resblocks.0"), ("RN50", "visual.layer1.0")]
)
def test_only_the_visual_tower_of_clip_is_looked_at(name: str, expected: str) -> None:
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        names = find_block_names(open_clip.CLIP(**config))
    assert names[0] == expected
    assert all(block.startswith("visual.") for block in names)


def test_a_network_of_timm_inside_another_module_says_itself() -> None:
    module = nn.ModuleDict({"wrapper": nn.ModuleDict({"net": timm.create_model("test_convnext")})})
    inner = find_block_names(timm.create_model("test_convnext"))
    assert find_block_names(module) == tuple(f"wrapper.net.{name}" for name in inner)


def test_compiled_parts_have_their_own_names() -> None:
    net = torchvision.models.resnet18()
    plain = find_block_names(net)
    net.layer1[0] = torch.compile(net.layer1[0])
    assert find_block_names(nn.ModuleDict({"net": torch.compile(net)})) == tuple(f"net.{name}" for name in plain)


def test_layers_are_those_that_compile_wrapped() -> None:
    inner = nn.Linear(2, 2)
    assert named_layers(nn.ModuleDict({"net": torch.compile(inner)})) == {"net": inner}


def test_layouts_differ() -> None:
    with torch.device("meta"):
        layouts = {
            "torchvision ViT": find_layout(torchvision.models.vit_b_32()),
            "torchvision Swin": find_layout(torchvision.models.swin_t()),
            "torchvision ResNet": find_layout(torchvision.models.resnet18()),
            "timm ViT": find_layout(timm.create_model("test_vit")),
            "open_clip ViT": find_layout(open_clip.CLIP(**open_clip.get_model_config("ViT-B-32")).visual),
        }
    assert {name: replace(layout, block_names=()) for name, layout in layouts.items()} == {
        "torchvision ViT": BlockLayout(num_prefix_tokens=1, maps_channels_last=None),
        "torchvision Swin": BlockLayout(maps_channels_last=True, has_class_token=False),
        "torchvision ResNet": BlockLayout(maps_channels_last=None, has_class_token=False),
        "timm ViT": BlockLayout(num_prefix_tokens=1),
        "open_clip ViT": BlockLayout(num_prefix_tokens=1, maps_channels_last=None),
    }


def test_tokens_in_front_of_samples_are_seen() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2), 2, enable_nested_tensor=False)
    assert find_layout(encoder).tokens_first


def test_mixed_layouts_are_refused() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="tiny_vit mix two layouts"):
        find_layout(timm.create_model("tiny_vit_5m_224"))
