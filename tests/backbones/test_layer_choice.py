from typing import Any

import pytest
import timm
from torch import nn

from nc_finetune.backbones import choose_layers, find_network_layers

BLOCKS = ("layer1.0", "layer2.0", "layer3.0", "layer4.0")


def choose(layers: Any, net: nn.Module | None = None) -> tuple[str, ...]:
    return choose_layers(find_network_layers(net or timm.create_model("test_resnet", num_classes=3)), layers)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, ("stem", *BLOCKS, "penultimate")),
        (2, BLOCKS[-2:]),
        ([0, -1], (BLOCKS[0], BLOCKS[-1])),
        ("penultimate", ("penultimate",)),
        (["penultimate", "layer*", 0], (*BLOCKS, "penultimate")),
        (["layer?.0"], BLOCKS),
        (["layer4.0.conv*"], ("layer4.0.conv1", "layer4.0.conv2")),
        (["global_pool", "stem"], ("stem", "global_pool")),
    ],
)
def test_choices(layers: Any, expected: tuple[str, ...]) -> None:
    assert choose(layers) == expected


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        (5, "asks for the last 5 of 4 blocks"),
        (0, "asks for the last 0 of 4 blocks"),
        ([4], "block index 4 is out of range: there are 4 blocks"),
        ([-5], "block index -5 is out of range"),
        (["blocks.*"], r"unknown pattern of layers 'blocks.\*'.* Valid: stem, layer1.0"),
        (["layer1.1"], "unknown layer 'layer1.1'; did you mean 'layer1.0'"),
        ([], "at least one layer must be chosen"),
    ],
)
def test_what_is_not_there_is_an_error(layers: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        choose(layers)


def test_a_net_without_blocks_asks_for_names() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Bilinear(4, 4, 4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"no blocks were found in Sequential.* 0, 1, 2"):
        choose(None, plain)
    assert choose(["1", "penultimate"], plain) == ("penultimate", "1")


@pytest.mark.parametrize("layers", [None, ["penultimate"]])
def test_a_net_without_classifier_asks_for_its_name(layers: Any) -> None:
    with pytest.raises(ValueError, match="the classifier of ResNet was not found; name it"):
        choose(layers, timm.create_model("test_resnet", num_classes=0))
