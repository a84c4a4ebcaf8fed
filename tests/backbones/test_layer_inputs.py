"""Inputs of layers, kept for what runs beside the network."""

import pytest
import torch
from torch import Tensor, nn

from nc_finetune.backbones import SplitError
from nc_finetune.backbones._split.layer_inputs import LayerInput, SeenInput, watch_seen


class Adding(nn.Module):
    def forward(self, inputs: Tensor, other: Tensor | None = None, *, factor: float = 1.0) -> Tensor:
        return inputs + (0 if other is None else factor * other)


def look(samples: int, **named: object) -> SeenInput:
    return SeenInput(torch.zeros(5, samples), (torch.ones(5, 1),), {"factor": 2.0, **named})


def test_what_was_seen_is_a_copy() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    with watch_seen(net, ["1"]) as seen:
        net(torch.randn(8, 2))
    assert (seen["1"].first < 0).any()


def test_a_layer_that_is_called_twice_is_refused() -> None:
    layer = nn.Linear(2, 2)
    with (
        watch_seen(nn.ModuleDict({"twice": layer}), ["twice"]),
        pytest.raises(SplitError, match="'twice' more than once"),
    ):
        layer(layer(torch.zeros(1, 2)))


def test_samples_come_first_and_go_back_to_their_place() -> None:
    kind = LayerInput.of("it", look(2), look(3))
    values = torch.arange(20.0).view(5, 4)
    kept = values.movedim(kind.axis, 0)
    assert kept.shape == (4, 5)
    layer = Adding()
    with kind.given(layer, kept.bfloat16()):
        found = layer("nothing of what it is called with counts", factor=7.0)
    assert torch.equal(found, values + 2)


def test_hooks_that_were_there_before_see_what_was_kept() -> None:
    layer, seen = Adding(), []
    layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    kind = LayerInput.of("it", look(2), look(3))
    with kind.given(layer, kept := torch.rand(4, 5)):
        layer(torch.zeros(1))
    assert torch.equal(seen[0], kept.T)


@pytest.mark.parametrize(
    ("few", "more", "message"),
    [
        (None, look(3), "does not call 'it'"),
        (SeenInput([1], (), {}), SeenInput([1], (), {}), "'it' sees is not one tensor"),
        (look(2, mask=torch.ones(2)), look(3, mask=torch.ones(3)), "beside its first input depends on the samples"),
        (look(2, mask=torch.ones(2)), look(3, mask=torch.zeros(2)), "beside its first input depends on the samples"),
        (look(2, depth=2), look(3, depth=3), "beside its first input depends on the samples"),
        (look(2), look(2), "no dimension of what 'it' sees"),
    ],
)
def test_what_cannot_be_kept_says_why(few: SeenInput | None, more: SeenInput, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        LayerInput.of("it", few, more)
