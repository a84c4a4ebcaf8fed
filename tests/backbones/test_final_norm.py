"""Which normalisation the penultimate feature comes out of, in networks of many families."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import quick_where
from crossed import crossed
from torch import Tensor, nn

from nc_finetune.backbones import Backbone, OpenClipBackbone, TimmBackbone, norm_width
from nc_finetune.methods import SideFinetuning, SkipConnectionFinetuning

# By hand, from the forward passes of timm and open_clip.
EXPECTED = {
    "test_vit": "norm",  # blocks, norm, class token
    "test_vit2": "fc_norm",  # average, then norm
    "vit_base_patch16_siglip_224": "norm",  # norm, then a pooling with a norm before its MLP
    "vit_pe_core_tiny_patch16_384": "norm",
    "vit_pe_lang_large_patch14_448": None,  # an identity
    "vit_small_patch16_dinov3": "norm",
    "eva02_tiny_patch14_224": "fc_norm",
    "beit_base_patch16_224": "fc_norm",
    "cait_xxs24_224": "norm",  # behind blocks of the class token alone
    "xcit_nano_12_p8_224": "norm",
    "swin_tiny_patch4_window7_224": "norm",
    "swinv2_cr_tiny_224": "stages.3.blocks.1.norm3",  # the last thing in the last block
    "gcvit_xxtiny": "stages.3.norm",  # of the stage, which is the block
    "pvt_v2_b0": "stages.3.norm",
    "convnext_atto": "head.norm",
    "vit_base_patch16_clip_224": "norm",  # norm_pre runs before the blocks
    "resnetv2_18": "norm",
    "resnetv2_50x1_bit": "norm",
    "efficientnet_b0": "bn2",
    "densenet121": "features.norm5",
    "samvit_base_patch16": "neck.3",
    "mambaout_femto": "head.pre_logits.norm",  # the second one of the head
    "crossvit_tiny_240": None,  # two branches, a norm each
    "test_resnet": None,
    "vgg11": None,
    "open_clip:ViT-B-32": "ln_post",
    "open_clip:RN50": None,
    "open_clip:coca_ViT-B-32": "ln_post",  # norms of queries and keys are in the attention pooling before it
    "open_clip:ViT-B-16-SigLIP": "trunk.norm",
    "open_clip:convnext_base": "trunk.head.norm",
    "open_clip:EVA02-B-16": "trunk.norm",
}
# The small ones of each kind, which run always: before and behind the pooling, of a stage, in a head, none.
FEW = {"test_vit", "test_vit2", "pvt_v2_b0", "convnext_atto", "mambaout_femto", "test_resnet", "vgg11"}


def on_meta(name: str) -> Any:
    with torch.device("meta"):
        clip = name.removeprefix("open_clip:")
        return OpenClipBackbone(clip, None) if clip != name else TimmBackbone(name, None)


def check_final_norm(backbone: Backbone, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="has no layer norm between its last block and the classifier"):
            _ = backbone.final_norm
    else:
        assert backbone.final_norm_name == expected
        assert backbone.final_norm is backbone.get_layer(expected)


@pytest.mark.parametrize("name", quick_where(FEW.__contains__, EXPECTED))
def test_it_is_the_last_one_that_everything_passes_through(name: str) -> None:
    check_final_norm(on_meta(name), EXPECTED[name])


class Net(nn.Module):
    """Two blocks, and norms that are registered in another order than they run in."""

    def __init__(self, branch: bool) -> None:
        super().__init__()
        self.after = nn.LayerNorm(8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.before = nn.LayerNorm(8)
        self.unused = nn.LayerNorm(8)
        self.branch = branch

    def forward(self, images: Tensor) -> Tensor:
        features = self.before(images.mean(dim=(2, 3))[:, :1].expand(-1, 8))
        for block in self.blocks:
            features = block(features)
        return features + self.after(features) if self.branch else self.after(features).relu_()


class Own(TimmBackbone):
    """A backbone around somebody's own network."""

    def __init__(self, branch: bool) -> None:
        super().__init__("test_vit", None)
        self.model, self.block_names = Net(branch), ("blocks.0", "blocks.1")

    def penultimate(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.model(inputs)
        return features


@pytest.mark.parametrize(("branch", "expected"), [(False, "after"), (True, None)])
def test_the_order_of_registration_and_what_a_branch_does_mislead_nobody(branch: bool, expected: str | None) -> None:
    check_final_norm(Own(branch), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_looking_leaves_the_network_as_it_was(mode: Any) -> None:
    backbone = TimmBackbone("test_vit", None, {"img_size": 32}).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with mode():
        assert backbone.final_norm_name == "norm"
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(value.grad is None and value.requires_grad for value in backbone.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in backbone.modules())


def test_a_network_that_does_not_run_on_the_meta_device_runs_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = TimmBackbone("test_vit", None, {"img_size": 32})
    constant = torch.zeros(1, 1, 1, 1)  # no buffer, hence left where it is
    plain = type(backbone).penultimate
    monkeypatch.setattr(TimmBackbone, "penultimate", lambda self, inputs: plain(self, inputs + constant.to("cpu")))
    assert backbone.final_norm_name == "norm"


def test_a_network_is_run_once_for_all_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = TimmBackbone("test_vit", None, {"img_size": 32})
    asked: list[object] = []
    found = SimpleNamespace(find=lambda network, *_: asked.append(network) or "norm")
    monkeypatch.setattr("nc_finetune.backbones.base.find_final_norm", found.find)
    for _ in range(3):
        SideFinetuning(join="before_norm").features(backbone, torch.rand(2, 3, 32, 32))
    assert len(asked) == 1


def test_layers_that_others_read_are_not_called() -> None:
    called = on_meta("beit_base_patch16_224").called_layers()
    assert "blocks.0.attn.proj" in called
    assert "blocks.0.attn.qkv" not in called


def small_sam() -> TimmBackbone:
    """Its blocks give (N, H, W, D), and the norms of its neck see (N, D, H, W)."""
    options = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "neck_chans": 48, "global_attn_indexes": ()}
    return TimmBackbone("samvit_base_patch16", None, options)


@pytest.mark.parametrize(
    ("method", "build"),
    crossed(
        [SkipConnectionFinetuning, SideFinetuning],
        [
            lambda: TimmBackbone("test_vit", None, {"img_size": 32}),
            lambda: TimmBackbone("test_convnext", None),
            lambda: TimmBackbone("test_efficientnet", None),
            small_sam,
        ],
    ),
)
def test_a_skip_before_the_norm_is_added_to_what_it_sees(method: Any, build: Any) -> None:
    torch.manual_seed(0)
    backbone = build().eval()
    skipped = method(backbone.middle_block, join="before_norm")
    images, seen, pooled = torch.rand(3, 3, 32, 32), list[Tensor](), list[Tensor]()
    block = backbone.get_layer(backbone.middle_block)
    block.register_forward_hook(lambda _, __, output: pooled.append(backbone.pool(output)))
    backbone(images)
    backbone.final_norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    backbone(images)
    skipped.features(backbone, images)
    plain, joined = seen
    added = joined - plain
    expected = nn.functional.pad(pooled[0], (0, norm_width(backbone.final_norm) - pooled[0].shape[1]))
    if plain.ndim == 4:
        expected = expected[..., None, None]
    if plain.ndim == 3:
        expected = expected[:, None]
    torch.testing.assert_close(added, expected.expand_as(added), rtol=1e-4, atol=1e-4)
