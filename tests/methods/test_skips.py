from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny_clip import register_tiny_clip
from torch import Tensor

from nc_finetune.backbones import OpenClipBackbone, TimmBackbone
from nc_finetune.methods import LayerFinetuning, SkipConnectionFinetuning, SkipConnections, SkipProbe


def make_resnet() -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone("test_resnet", weights=None).eval()


def make_images(seed: int = 0) -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def rms(value: Tensor) -> Tensor:
    return value.square().mean().sqrt()


def test_several_skips_are_all_added() -> None:
    penultimate, first, second = torch.ones(1, 3), torch.full((1, 2), 2.0), torch.full((1, 3), 4.0)
    assert SkipConnections(2, 0.5)(penultimate, [first, second]).tolist() == [[4.0, 4.0, 3.0]]


def test_a_learned_scale_starts_at_one_and_gets_a_gradient() -> None:
    skips = SkipConnections(2, "learned")
    summed = skips(torch.ones(1, 2), [torch.ones(1, 2), torch.full((1, 2), 3.0)])
    summed.sum().backward()
    assert summed.tolist() == [[5.0, 5.0]]
    assert skips.factors.grad is not None
    assert skips.factors.grad.tolist() == [2.0, 6.0]


def test_a_matched_scale_brings_the_skip_to_the_size_of_the_feature() -> None:
    penultimate, skip = torch.randn(8, 6), 30 * torch.randn(8, 4)
    added = SkipConnections(1, "matched")(penultimate, [skip])[:, :4] - penultimate[:, :4]
    torch.testing.assert_close(rms(added), rms(penultimate))


def test_a_matched_scale_is_that_of_the_first_training_batch() -> None:
    skips = SkipConnections(1, "matched")
    skips.eval()(torch.ones(2, 3), [torch.full((2, 3), 7.0)])
    assert skips.matched.tolist() == [0.0], "evaluation must not fix it"
    skips.train()(torch.ones(2, 3), [torch.full((2, 3), 4.0)])
    skips(torch.ones(2, 3), [torch.full((2, 3), 9.0)])
    assert skips.matched.tolist() == [0.25]


def test_a_matched_scale_travels_in_the_state() -> None:
    first, second = SkipConnections(1, "matched"), SkipConnections(1, "matched")
    first.train()(torch.ones(2, 3), [torch.full((2, 3), 4.0)])
    second.load_state_dict(first.state_dict())
    assert second.eval()(torch.ones(1, 3), [torch.full((1, 3), 8.0)]).tolist() == [[3.0, 3.0, 3.0]]


def test_a_zero_skip_is_matched_without_nan() -> None:
    assert SkipConnections(1, "matched")(torch.ones(2, 3), [torch.zeros(2, 3)]).tolist() == [[1.0] * 3] * 2


def test_unknown_scale_is_an_error() -> None:
    with pytest.raises(ValueError, match="must be a number, 'matched' or 'learned', got 'match'"):
        SkipConnections(1, "match")  # type: ignore[arg-type]


def test_skip_probe_is_what_scl_sees_of_a_frozen_network() -> None:
    backbone = make_resnet()
    probe, scl = SkipProbe(["layer2.0"]), SkipConnectionFinetuning("layer2.0")
    assert torch.equal(probe.features(backbone, make_images()), scl.features(backbone, make_images()))


def test_skip_probe_trains_nothing_of_the_backbone_and_takes_the_middle_block() -> None:
    backbone, probe = make_resnet(), SkipProbe()
    probe.freeze(backbone)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    expected = SkipProbe(["layer2.0"]).features(backbone, make_images())
    assert torch.equal(probe.features(backbone, make_images()), expected)


def test_skip_probe_of_no_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        SkipProbe([])


def test_skip_probe_of_an_unknown_block_lists_the_blocks() -> None:
    with pytest.raises(ValueError, match=r"unknown layer 'layer9.0'.*layer1.0"):
        SkipProbe(["layer9.0"]).features(make_resnet(), make_images())


def test_a_span_is_tuned_whole_and_its_last_block_is_the_skip() -> None:
    backbone = make_resnet()
    span = SkipConnectionFinetuning(["layer2.0", "layer1.0"])
    span.freeze(backbone)
    tuned = {name for name, value in backbone.model.named_parameters() if value.requires_grad}
    blocks = ("layer1.0.", "layer2.0.")
    assert tuned == {name for name, _ in backbone.model.named_parameters() if name.startswith(blocks)}
    expected = SkipConnectionFinetuning("layer2.0").features(backbone, make_images())
    assert torch.equal(span.features(backbone, make_images()), expected)


@pytest.mark.parametrize("span", [["layer1.0", "layer3.0"], []])
def test_blocks_that_are_not_adjacent_are_refused(span: list[str]) -> None:
    with pytest.raises(ValueError, match="must be adjacent blocks"):
        LayerFinetuning(span).freeze(make_resnet())


def test_an_unknown_block_of_a_span_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown block 'layer2\.1'; did you mean 'layer2\.0'"):
        LayerFinetuning(["layer2.0", "layer2.1"]).freeze(make_resnet())


def test_skips_from_several_blocks_are_those_asked_for() -> None:
    backbone = make_resnet()
    both = SkipConnectionFinetuning("layer2.0", skip_layers=["layer1.0", "layer2.0"])
    alone = [SkipConnectionFinetuning(layer).features(backbone, make_images()) for layer in ("layer1.0", "layer2.0")]
    expected = alone[0] + alone[1] - backbone(make_images())
    torch.testing.assert_close(both.features(backbone, make_images()), expected)


# --- where skips join


def make_vit(**options: Any) -> TimmBackbone:
    torch.manual_seed(0)
    backbone = TimmBackbone("test_vit", None, {"img_size": 32, **options}).eval()
    torch.nn.init.normal_(backbone.final_norm.weight)
    return backbone


def tokens_after(backbone: TimmBackbone, number: int) -> Tensor:
    net = backbone.model
    tokens = net.norm_pre(net._pos_embed(net.patch_embed(backbone.normalize(make_images()))))
    for block in net.blocks[:number]:
        tokens = block(tokens)
    return tokens


def test_a_skip_can_go_through_the_final_norm() -> None:
    backbone = make_vit()
    method = SkipConnectionFinetuning("blocks.1", scale=0.5, join="normed_feature")
    expected = backbone(make_images()) + 0.5 * backbone.model.norm(tokens_after(backbone, 2)[:, 0])
    torch.testing.assert_close(method.features(backbone, make_images()), expected)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_skip_can_join_before_the_final_norm(pool: str) -> None:
    backbone = make_vit(global_pool=pool)
    method = SkipConnectionFinetuning("blocks.1", scale=0.5, join="before_norm")
    tokens = (tokens_after(backbone, number) for number in (len(backbone.model.blocks), 2))
    last, skipped = (found[:, 1:].mean(dim=1) if pool == "avg" else found[:, 0] for found in tokens)
    expected = backbone.final_norm(last + 0.5 * skipped)
    torch.testing.assert_close(method.features(backbone, make_images()), expected)
    assert not backbone.final_norm._forward_pre_hooks


@pytest.mark.parametrize("join", ["normed_feature", "before_norm"])
def test_a_skip_of_a_clip_joins_before_the_projection(join: Any) -> None:
    backbone = OpenClipBackbone(register_tiny_clip(), None, features="projected").eval()
    with (
        pytest.raises(ValueError, match="cannot go through the final norm")
        if join == "normed_feature"
        else nullcontext()
    ):
        assert SkipConnectionFinetuning(join=join).features(backbone, make_images()).shape == (4, 48)


def test_a_network_without_layer_norm_says_so() -> None:
    with pytest.raises(ValueError, match="'test_resnet' has no layer norm between its last block and the classifier"):
        SkipConnectionFinetuning(join="before_norm").features(make_resnet(), make_images())


@pytest.mark.parametrize("method", [SkipConnectionFinetuning, SkipProbe])
def test_unknown_ways_to_join_and_to_pool_are_refused(method: type[SkipProbe]) -> None:
    with pytest.raises(ValueError, match="unknown join of a skip 'norm'"):
        method(join="norm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown pooling of a skip 'mean'.*default, average, class_token"):
        method(pooling="mean")  # type: ignore[arg-type]


# --- how they are pooled


@pytest.mark.parametrize(("pooling", "rows"), [("default", slice(0, 1)), ("average", slice(1, None))])
def test_tokens_are_pooled_as_asked(pooling: Any, rows: slice) -> None:
    backbone = make_vit()
    expected = backbone(make_images()) + 2 * tokens_after(backbone, 2)[:, rows].mean(dim=1)
    for method in (
        SkipConnectionFinetuning("blocks.1", 2.0, pooling=pooling),
        SkipProbe(["blocks.1"], 2.0, pooling=pooling),
    ):
        torch.testing.assert_close(method.features(backbone, make_images()), expected)


def test_a_class_token_that_is_not_there_is_refused() -> None:
    backbone = make_vit(class_token=False, global_pool="avg")
    with pytest.raises(ValueError, match="there is no class token to take"):
        SkipConnectionFinetuning("blocks.1", pooling="class_token").features(backbone, make_images())


def test_skip_probe_joins_where_it_is_told() -> None:
    backbone = make_vit()
    probe = SkipProbe(["blocks.1"], 0.5, join="before_norm")
    scl = SkipConnectionFinetuning("blocks.1", 0.5, join="before_norm")
    assert torch.equal(probe.features(backbone, make_images()), scl.features(backbone, make_images()))
    plain = SkipProbe(["blocks.1"], 0.5).features(backbone, make_images())
    assert not torch.equal(probe.features(backbone, make_images()), plain)
