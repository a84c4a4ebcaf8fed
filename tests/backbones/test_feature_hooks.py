from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nc_finetune.backbones import watch_input, watch_outputs


def make_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), nn.LSTM(2, 2))


def ignore(_name: str, _tensor: Tensor) -> None:
    pass


def watch(net: nn.Sequential, kind: str) -> AbstractContextManager[None]:
    return watch_outputs(net, ["0", "1.1"], ignore) if kind == "outputs" else watch_input(net[0], "stem", ignore)


def count_hooks(net: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in net.modules())


def test_outputs_are_those_of_the_layers() -> None:
    net, inputs = make_net()[:2], torch.randn(5, 4)
    taken: dict[str, Tensor] = {}
    with watch_outputs(net, ["0", "1.1"], taken.__setitem__):
        result = net(inputs)
    assert torch.equal(taken["0"], net[0](inputs))
    assert taken["1.1"] is result


def test_every_forward_pass_is_taken_in_the_order_of_the_network() -> None:
    net, names = make_net(), list[str]()
    with watch_outputs(net, ["1", "0"], lambda name, _: names.append(name)):
        net(torch.randn(1, 4))
        net(torch.randn(1, 4))
    assert names == ["0", "1", "0", "1"]


def test_gradients_flow_through_what_was_taken() -> None:
    net, taken = make_net(), dict[str, Tensor]()
    with watch_outputs(net, ["0"], taken.__setitem__):
        net(torch.randn(1, 4))
    taken["0"].sum().backward()
    assert net[0].weight.grad is not None


def test_input_is_what_the_module_sees() -> None:
    net, taken = make_net(), dict[str, Tensor]()
    inputs = torch.randn(5, 4)
    with watch_input(net[1], "middle", taken.__setitem__):
        net(inputs)
    assert torch.equal(taken["middle"], net[0](inputs))


def test_input_may_be_a_list_of_one_as_in_densenet() -> None:
    taken: dict[str, Tensor] = {}
    inputs = torch.randn(2, 4)
    with watch_input(module := nn.Identity(), "stem", taken.__setitem__):
        module([inputs])
    assert taken["stem"] is inputs


@pytest.mark.parametrize("kind", ["outputs", "input"])
def test_hooks_are_there_inside_and_gone_afterwards(kind: str) -> None:
    net = make_net()
    with watch(net, kind):
        assert count_hooks(net) == (2 if kind == "outputs" else 1)
    assert count_hooks(net) == 0


@pytest.mark.parametrize("kind", ["outputs", "input"])
def test_hooks_are_gone_after_an_exception(kind: str) -> None:
    net = make_net()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), watch(net, kind):
        net(torch.randn(1, 5))
    assert count_hooks(net) == 0


def test_no_hook_is_left_where_a_layer_is_unknown() -> None:
    net = make_net()
    with pytest.raises(AttributeError, match="nowhere"), watch_outputs(net, ["0", "nowhere"], ignore):
        pass
    assert count_hooks(net) == 0


def test_tuple_output_is_an_error_that_names_the_layer() -> None:
    net = make_net()
    match = "layer '2' must give one tensor, got tuple; take a block around or inside it"
    with watch_outputs(net, ["0", "2"], ignore), pytest.raises(TypeError, match=match):
        net(torch.randn(1, 4))


@pytest.mark.parametrize(("given", "kind"), [([torch.zeros(1), torch.zeros(1)], "list"), ({}, "dict"), ([1], "int")])
def test_input_of_another_kind_is_an_error_that_names_it(given: Any, kind: str) -> None:
    match = f"layer 'stem' must give one tensor, got {kind}"
    with watch_input(module := nn.Identity(), "stem", ignore), pytest.raises(TypeError, match=match):
        module(given)


def test_input_may_be_given_by_name() -> None:
    taken: dict[str, Tensor] = {}
    inputs = torch.randn(2, 4)
    with watch_input(module := nn.Linear(4, 2), "penultimate", taken.__setitem__):
        module(input=inputs)
    assert taken["penultimate"] is inputs


def test_anything_is_taken_where_the_caller_checks() -> None:
    net, taken = make_net(), dict[str, Any]()
    with watch_outputs(net, ["2"], taken.__setitem__, check=False):
        net(torch.randn(1, 4))
    assert isinstance(taken["2"], tuple)
