import pytest
import torch
from conftest import quick_first
from torch import Tensor, nn

from nc_finetune.backbones import Backbone, Preprocessing, create_backbone, find_block_chains, weights_hash


class Branching(Backbone):
    """Blocks a, b, c, of which c sees the sum of the others."""

    def __init__(self, block_names: tuple[str, ...] = ("a", "b", "c")) -> None:
        model = nn.ModuleDict({name: nn.Conv2d(3, 3, 1) for name in "abc"})
        preprocessing = Preprocessing((0.5,) * 3, (0.5,) * 3, 8, "bilinear")
        super().__init__(
            model, name="x", weights=None, num_features=3, block_names=block_names, preprocessing=preprocessing
        )

    def penultimate(self, inputs: Tensor) -> Tensor:
        first = self.model["a"](inputs)
        second = self.model["b"](first)
        return self.pool(self.model["c"](first + second))


@pytest.mark.parametrize(
    ("name", "lengths"),
    quick_first(
        4,
        [
            ("resnet18", [8]),
            ("vit_base_patch32_224", [12]),
            ("convnext_tiny", [3, 3, 9, 3]),
            ("open_clip:tiny-timm", [1, 2, 4, 2]),
            ("densenet121", [7]),
            ("swin_tiny_patch4_window7_224", [2, 2, 6, 2]),
            ("mobilenetv3_large_100", [16]),
            ("open_clip:ViT-B-32", [12]),
            ("open_clip:RN50", [16]),
        ],
    ),
)
def test_chains_end_where_something_stands_between(name: str, lengths: list[int]) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, None)
    chains = find_block_chains(backbone)
    assert [len(chain) for chain in chains] == lengths
    assert sum(chains, ()) == backbone.block_names


def test_block_that_sees_more_than_the_one_before_begins_a_chain() -> None:
    assert find_block_chains(Branching()) == (("a", "b"), ("c",))


def test_block_out_of_order_is_an_error() -> None:
    with pytest.raises(ValueError, match="of 'x' must call its blocks in order, got a, b, c"):
        find_block_chains(Branching(("b", "a", "c")))


def test_network_is_left_as_it_is() -> None:
    backbone = create_backbone("test_resnet", None).train()
    before = weights_hash(backbone)
    find_block_chains(backbone)
    assert weights_hash(backbone) == before
    assert all(parameter.device.type == "cpu" for parameter in backbone.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in backbone.modules())


def test_size_of_the_images_can_be_given() -> None:
    options = {"img_size": 32, "depth": 2, "embed_dim": 12, "num_heads": 2}
    backbone = create_backbone("vit_small_patch16_224", None, model_options=options)
    assert find_block_chains(backbone, 32) == (("blocks.0", "blocks.1"),)
