"""Biases and norms, by what they are, in every family of timm and in the towers of open_clip."""

from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from conftest import quick_where
from torch import nn

from nc_finetune import ImageClassifier
from nc_finetune.backbones import OpenClipBackbone, TimmBackbone
from nc_finetune.methods import BiasTuning, NormTuning, ProbeFirst
from nc_finetune.methods.vectors import is_bias

# Written by hand, from what timm 1.0 and open_clip 3 consist of.
NORMS = {
    *("BatchNorm1d", "BatchNorm2d", "BatchNormAct2d", "GroupNorm", "GroupNorm1", "GroupNorm1NoBias", "GroupNormAct"),
    *("LayerNorm", "LayerNorm2d", "LayerNorm2dNoBias", "LayerNormNoBias", "LayerNormAct2d", "LayerNormFp32"),
    *("RmsNorm", "RmsNorm2d", "RmsNormAct2d", "RmsNormFp32", "SimpleNorm", "SimpleNorm2d"),
    *("EvoNorm2dS0", "EvoNorm2dS0a", "FilterResponseNormTlu2d", "GlobalResponseNorm"),
}
LSTM_BIASES = {f"bias_{kind}_l0{way}" for kind in ("ih", "hh") for way in ("", "_reverse")}
BIASES = {"bias", "in_proj_bias", "q_bias", "v_bias", "mlp_bias", "beta", *LSTM_BIASES}
TABLES = {"relative_position_bias_table", "attention_biases"}
# At least one of each kind of bias and of norm.
FEW = (
    *("beit_base_patch16_224", "swinv2_tiny_window8_256", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"),
    *("vit_base_patch16_xp_224", "resmlp_12_224", "sequencer2d_s", "caformer_s18", "hgnetv2_b0", "levit_128s"),
    *("resnet18", "resnet50_gn", "resnetv2_50d_frn", "test_efficientnet_evos", "poolformerv2_s12", "convnextv2_atto"),
    *("convnext_atto_rms", "convnext_zepto_rms", "test_maxvit", "coatnext_nano_rw_224", "resnetv2_50x1_bit"),
    *("test_vit4", "gcvit_xxtiny", "vit_small_patch16_dinov3", "regnetz_b16_evos", "cait_xxs24_224", "vgg11"),
)
# The small ones, which run always.
FEWER = {"resnet18", "test_maxvit", "test_efficientnet_evos", "levit_128s", "convnext_zepto_rms", "open_clip:RN50"}
TOWERS = ("ViT-B-32", "RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP", "EVA02-B-16", "convnext_base", "MobileCLIP-B")


def on_meta(name: str) -> Any:
    """Build a network without memory, and hold it as a backbone does."""
    with torch.device("meta"):
        if name.startswith("open_clip:"):
            return OpenClipBackbone(name.partition(":")[2], None)
        if not timm.is_model(name):
            pytest.skip(f"timm {timm.__version__} has no {name}")
        return SimpleNamespace(model=timm.create_model(name, num_classes=0), name=name)


def of(backbone: Any) -> list[tuple[str, str, nn.Parameter]]:
    """List the class, the own name and the value of every parameter."""
    return [
        (type(part).__name__, name, value)
        for part in backbone.model.modules()
        for name, value in part.named_parameters(recurse=False)
    ]


def tuned(method: Any, backbone: Any, expected: set[int]) -> set[int]:
    if expected:
        return {id(value) for value in method.tuned_parameters(backbone)}
    with pytest.raises(ValueError, match=f"'{backbone.name}' has none; choose"):
        method.tuned_parameters(backbone)
    return set()


def check(name: str) -> None:
    backbone = on_meta(name)
    parameters = of(backbone)
    expected = {id(value) for _, own, value in parameters if own in BIASES}
    biases = tuned(BiasTuning(), backbone, expected)
    assert biases == expected
    expected = {id(value) for kind, _, value in parameters if kind in NORMS}
    assert tuned(NormTuning(), backbone, expected) == expected
    left = {own for _, own, value in parameters if "bias" in own and id(value) not in biases}
    assert left <= TABLES
    assert all(value.ndim == 1 or own == "beta" for _, own, value in parameters if id(value) in biases)


@pytest.mark.parametrize("name", quick_where(FEWER.__contains__, [*FEW, *(f"open_clip:{tower}" for tower in TOWERS)]))
def test_all_biases_and_all_norms_are_tuned_and_nothing_else(name: str) -> None:
    check(name)


def families() -> dict[str, str]:
    """One network, a small one where a name says so, of every module of timm."""
    found: dict[str, list[str]] = {}
    for name in timm.list_models():
        found.setdefault(timm.models._registry._model_entrypoints[name].__module__, []).append(name)
    words = ("test_", "tiny", "nano", "atto", "femto", "small", "_b0", "_s")
    return {
        module.rpartition(".")[2]: next((name for word in words for name in names if word in name), names[0])
        for module, names in found.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", families())
def test_so_they_are_in_every_family_of_timm(family: str) -> None:
    check(families()[family])


@pytest.mark.parametrize(
    ("parameter", "shape", "expected"),
    [
        ("bias", (8,), True),
        ("k_bias", (8,), True),
        ("bias_hh_l1", (8,), True),
        ("bias_k", (1, 1, 8), False),  # a token that nn.MultiheadAttention appends
        ("relative_position_bias_table", (9,), False),
        ("relative_position_bias", (9, 9), False),
        ("weight", (8,), False),
        ("gamma", (8,), False),
        ("unbiased", (8,), False),
    ],
)
def test_a_bias_is_known_by_name_and_shape(parameter: str, shape: tuple[int, ...], expected: bool) -> None:
    assert is_bias(parameter, nn.Parameter(torch.zeros(shape))) is expected


class Bare(TimmBackbone):
    """A network that has lost some of its parameters."""

    def __init__(self, lost: str) -> None:
        super().__init__("test_vit", None, {"img_size": 32})
        for part in self.model.modules():
            if lost == "bias" and getattr(part, "bias", None) is not None:
                part.bias = None
            if lost == "norm" and isinstance(part, nn.LayerNorm):
                part.weight, part.bias = None, None


@pytest.mark.parametrize("wrap", [lambda method: method, ProbeFirst])
@pytest.mark.parametrize(
    ("method", "lost", "match"),
    [
        (BiasTuning, "bias", "BitFit trains biases, and 'test_vit' has none; choose NormTuning or another"),
        (NormTuning, "norm", "norm tuning trains scale and shift of norms, and 'test_vit' has none; choose BiasTuning"),
    ],
)
def test_nothing_to_tune_is_an_error(wrap: Any, method: Any, lost: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ImageClassifier(Bare(lost), 3, method=wrap(method()))
