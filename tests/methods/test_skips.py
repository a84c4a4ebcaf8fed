import pytest
import torch
from torch import Tensor

from nc_finetune.backbones import TimmBackbone
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
