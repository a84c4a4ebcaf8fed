from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import normalize as torchvision_normalize

from nc_finetune.backbones import Backbone, Preprocessing, TimmBackbone

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TinyBackbone(Backbone):
    """Two blocks and global pooling."""

    def __init__(self, *blocks: nn.Module, **options: Any) -> None:
        model = nn.Sequential(*(blocks or (nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1))))
        defaults = {
            "name": "tiny",
            "weights": None,
            "num_features": 6,
            "block_names": ("0", "1"),
            "preprocessing": Preprocessing(MEAN, STD, 8, "bilinear"),
        }
        super().__init__(model, **{**defaults, **options})

    def penultimate(self, inputs: Tensor) -> Tensor:
        return self.pool(self.model(inputs))


def make_images() -> Tensor:
    return torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)


def test_normalisation_is_torchvisions() -> None:
    images = torch.rand(4, 3, 8, 8)
    expected = torchvision_normalize(images, list(MEAN), list(STD))
    torch.testing.assert_close(TinyBackbone().normalize(images), expected)


def test_bytes_and_floats_give_the_same_features() -> None:
    backbone, images = TinyBackbone(), make_images()
    torch.testing.assert_close(backbone(images), backbone(images / 255))


def test_features_are_the_penultimate_of_normalised_images() -> None:
    backbone, images = TinyBackbone(), make_images()
    by_hand = torchvision_normalize(images / 255, list(MEAN), list(STD))
    for block in backbone.model.children():
        by_hand = block(by_hand)
    torch.testing.assert_close(backbone(images), by_hand.mean(dim=(2, 3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_normalisation_follows_the_dtype_of_the_network(dtype: torch.dtype) -> None:
    backbone = TinyBackbone().to(dtype)
    assert backbone(make_images()).dtype == backbone(make_images() / 255).dtype == dtype


def test_normalisation_is_no_part_of_the_weights() -> None:
    assert set(TinyBackbone().state_dict()) == {"model.0.weight", "model.0.bias", "model.1.weight", "model.1.bias"}


@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 8, 8, 3), (3, 8, 8)])
def test_images_of_another_shape_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must have shape \(N, 3, H, W\), got \(" + str(shape[0])):
        TinyBackbone()(torch.zeros(shape))


def test_images_of_other_integers_are_an_error() -> None:
    with pytest.raises(TypeError, match=r"uint8 in 0...255 or floating point in 0...1, got torch.int64"):
        TinyBackbone()(make_images().long())


def test_layers_are_stem_blocks_and_penultimate() -> None:
    assert TinyBackbone().layer_names == ("stem", "0", "1", "penultimate")


def test_blocks_and_other_submodules_are_found_by_name() -> None:
    backbone = TimmBackbone("test_resnet", None)
    assert backbone.get_layer("layer2.0") is backbone.model.layer2[0]
    assert backbone.get_layer("layer2.0.conv1") is backbone.model.layer2[0].conv1


@pytest.mark.parametrize(
    ("layer", "hint"), [("layer2.1", "; did you mean 'layer2.0' or"), ("", "."), ("penultimate", ".")]
)
def test_unknown_layer_is_an_error_that_lists_the_blocks(layer: str, hint: str) -> None:
    with pytest.raises(ValueError, match="unknown layer") as error:
        TimmBackbone("test_resnet", None).get_layer(layer)
    assert str(error.value).startswith(f"unknown layer '{layer}'{hint}")
    assert str(error.value).endswith("Valid: layer1.0, layer2.0, layer3.0, layer4.0")


def test_network_without_blocks_is_an_error() -> None:
    with pytest.raises(ValueError, match="no residual or transformer blocks are known of 'tiny'; choose another"):
        TinyBackbone(block_names=())


def test_backbone_without_penultimate_cannot_be_made() -> None:
    with pytest.raises(TypeError, match=r"abstract.*penultimate"):
        Backbone(nn.Identity())  # type: ignore[abstract, call-arg]


def test_convolution_nets_run_with_channels_last() -> None:
    backbone = TinyBackbone(nn.Conv2d(3, 4, 2), nn.Conv2d(4, 6, 2))
    assert backbone.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert backbone.normalize(make_images()).is_contiguous(memory_format=torch.channels_last)


def test_transformers_run_with_contiguous_images() -> None:
    images = make_images().contiguous(memory_format=torch.channels_last)
    assert TimmBackbone("test_vit", None).normalize(images).is_contiguous()


@pytest.mark.parametrize(("has_class_token", "expected"), [(True, 9.0), (False, 1.0)])
def test_pooling_knows_the_tokens_of_the_network(has_class_token: bool, expected: float) -> None:
    backbone = TinyBackbone(num_prefix_tokens=2, has_class_token=has_class_token)
    tokens = torch.ones(1, 6, 3)
    tokens[:, :2] = 9
    assert backbone.pool(tokens).tolist() == [[expected] * 3]


def test_pooling_knows_the_layout_of_the_network() -> None:
    assert TinyBackbone(maps_channels_last=True).pool(torch.zeros(1, 2, 2, 7)).shape == (1, 7)


@pytest.mark.parametrize(("net", "given", "expected"), [("test_resnet", False, False), ("test_resnet", None, True)])
def test_channels_last_can_be_turned_off(net: str, given: bool | None, expected: bool) -> None:
    backbone = TimmBackbone(net, None, channels_last=given)
    weight = backbone.get_layer("layer2.0").conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == expected
    assert weight.is_contiguous() != expected
    assert backbone.normalize(torch.rand(2, 3, 8, 8)).is_contiguous() != expected
