import argparse

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.performance.finetune_step import REFERENCE, convolution_backward_flops, measure


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (8, 1), (8, 2)])
def test_each_gradient_of_a_convolution_costs_as_much_as_the_forward_pass(groups: int, stride: int) -> None:
    layer = nn.Conv2d(8, 16, 3, stride=stride, padding=1, groups=groups)
    with FlopCounterMode(display=False) as forward:
        output = layer(torch.rand(2, 8, 8, 8, requires_grad=True))
    formulas = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=formulas) as backward:
        output.sum().backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_a_block_is_cheaper_than_the_whole_and_cheaper_still_from_the_cache() -> None:
    setting = {"network": "test_efficientnet", "key_layer": "blocks.3.0", "pixels": 64, "batch": 4, "repeats": 1}
    rows = measure(argparse.Namespace(**setting, device="cpu", precision="32", fused=False))
    assert rows[REFERENCE]["ratio"] == rows[REFERENCE]["bound"] == 1
    for measured in ("flops", "memory"):
        costs = [rows[name][measured] for name in ("layer FT, cached", "layer FT", REFERENCE)]
        assert 0 < costs[0] < costs[1] < costs[2]
        assert 0 < rows["side FT, cached"][measured] < rows["SCL-FT, cached"][measured]
