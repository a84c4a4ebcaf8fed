"""What is a normalisation layer, how wide it is, and how the maps lie that it sees."""

from types import SimpleNamespace
from typing import Any

import pytest
import timm.layers as layers
import torchvision
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from nc_finetune.backbones import is_norm, norm_is_channels_last, norm_width


class Norm8(nn.Module):
    """Somebody's own, which says so by its name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(nn.LayerNorm(8).weight.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.scale


class NormedLinear(nn.Linear):
    """A cosine classifier: its weight is no vector."""


NORMS: list[tuple[Any, bool]] = [
    (nn.LayerNorm(8), True),
    (nn.RMSNorm(8), True),
    (nn.GroupNorm(2, 8), False),
    (nn.BatchNorm1d(8), False),
    (nn.BatchNorm2d(8, affine=False), False),
    (nn.SyncBatchNorm(8), False),
    (nn.InstanceNorm2d(8, affine=True), False),
    (layers.LayerNorm2d(8), False),
    (layers.LayerNormFp32(8), True),
    (layers.RmsNorm(8), True),
    (layers.RmsNorm2d(8), False),
    (layers.SimpleNorm(8), True),
    (layers.SimpleNorm2d(8), False),
    (layers.GroupNorm1(8), False),
    (layers.BatchNormAct2d(8), False),
    (layers.GroupNormAct(8, 2), False),
    (layers.LayerNormAct2d(8), False),
    (layers.FrozenBatchNormAct2d(8), False),
    (layers.EvoNorm2dB0(8), False),
    (layers.EvoNorm2dS0(8, groups=2), False),
    (layers.FilterResponseNormTlu2d(8), False),
    (GlobalResponseNorm(8), True),
    (torchvision.ops.FrozenBatchNorm2d(8), False),
    (Norm8(), True),
]
OTHERS: list[Any] = [
    nn.Linear(8, 8),
    nn.Conv2d(8, 8, 1),
    nn.Identity(),
    nn.Sequential(nn.BatchNorm2d(8)),
    nn.PReLU(8),
    layers.LayerScale(8),
    layers.ConvNormAct(8, 8, 1),
    layers.NormMlpClassifierHead(8, 3),
    layers.ScaledStdConv2d(8, 8, 1),
    layers.PatchEmbed(img_size=8, patch_size=4, embed_dim=8, norm_layer=nn.LayerNorm),
    NormedLinear(8, 8),
]


def name_of(case: Any) -> str:
    return type(case[0] if isinstance(case, tuple) else case).__name__


@pytest.mark.parametrize(("norm", "channels_last"), NORMS, ids=[name_of(case) for case in NORMS])
def test_a_norm_is_one_whichever_library_it_comes_from(norm: nn.Module, channels_last: bool) -> None:
    assert is_norm(norm)
    assert norm_width(norm) == 8
    if not isinstance(norm, GlobalResponseNorm):  # both ways, by an argument
        assert norm_is_channels_last(norm) is channels_last


@pytest.mark.parametrize("other", OTHERS, ids=[name_of(case) for case in OTHERS])
def test_what_holds_norms_or_is_called_so_is_none(other: nn.Module) -> None:
    assert not is_norm(other)


def test_norms_of_transformers_are_norms_and_its_layer_scale_is_none() -> None:
    models = pytest.importorskip("transformers.models")
    config = SimpleNamespace(num_groups=2, hidden_act="relu", hidden_size=8, layerscale_value=1.0)
    norms = [
        models.bit.modeling_bit.BitGroupNormActivation(config, 8),
        models.convnext.modeling_convnext.ConvNextLayerNorm(8),
        models.pixtral.modeling_pixtral.PixtralRMSNorm(8),
    ]
    assert all(is_norm(norm) and norm_width(norm) == 8 for norm in norms)
    assert not is_norm(models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTLayerScale(config))


def test_a_norm_that_says_nothing_has_no_width() -> None:
    norm = Norm8()
    norm.scale = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="a Norm8 without parameters does not say how wide it is"):
        norm_width(norm)
