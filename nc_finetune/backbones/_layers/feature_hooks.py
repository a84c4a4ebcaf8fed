"""What inner layers give is taken, or replaced, inside a ``with`` block alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def _check_tensor(layer: str, output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"layer {layer!r} must give one tensor, got {type(output).__name__}; take a block around or inside it"
        )
    return output


@contextmanager
def watch_outputs(
    module: nn.Module, layers: Iterable[str], take: Callable[[str, Any], None], *, check: bool = True
) -> Iterator[None]:
    """Call ``take(name, output)`` for each of the layers at every forward pass inside the ``with`` block.

    Args:
        module: The network.
        layers: Names of submodules, as in ``module.named_modules()``.
        take: What to do with an output; it must not change it.
        check: Refuse outputs that are not one tensor; otherwise ``take`` gets whatever comes.

    Raises:
        TypeError: At the forward pass, if a layer gives something else than one tensor.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> with watch_outputs(net, ["0"], lambda name, output: print(name, tuple(output.shape))):
        ...     _ = net(torch.zeros(2, 4))
        0 (2, 3)
    """

    def hook(layer: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        take(layer, _check_tensor(layer, output) if check else output)

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(module.get_submodule(layer).register_forward_hook(partial(hook, layer)))
        yield


@contextmanager
def watch_input(
    module: nn.Module, name: str, take: Callable[[str, Any], None], *, check: bool = True
) -> Iterator[None]:
    """Call ``take(name, input)`` with what the module is about to see, at every forward pass in the ``with`` block.

    Args:
        module: The module, e.g. a classifier whose input is the penultimate feature.
        name: The name under which its input is taken.
        take: What to do with the first input, given by position or by name; it must not change it.
        check: Refuse inputs that are not one tensor; otherwise ``take`` gets whatever comes.

    Raises:
        TypeError: At the forward pass, if the first input is neither a tensor nor a list of one.

    Example:
        >>> import torch
        >>> head = nn.Linear(4, 3)
        >>> with watch_input(head, "penultimate", lambda name, features: print(name, tuple(features.shape))):
        ...     _ = head(torch.zeros(2, 4))
        penultimate (2, 4)
    """

    def hook(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = next(iter((*inputs, *named.values())), None)
        # DenseNet's layers take the list of all maps so far; the first layer's list has one.
        only = first[0] if isinstance(first, (list, tuple)) and len(first) == 1 else first
        take(name, _check_tensor(name, only) if check else only)

    with module.register_forward_pre_hook(hook, with_kwargs=True):
        yield


@contextmanager
def run_beside(
    module: nn.Module, beside: Mapping[str, nn.Module], take: Callable[[str, Any], None]
) -> Iterator[Callable[[], None]]:
    """Run modules beside layers, on what these see in the forward passes inside the ``with`` block.

    They run once a pass is over, not in its midst: what a layer does under gradient checkpointing is done again in the
    backward pass, when nobody is there to look.

    Args:
        module: The network.
        beside: Modules by the name of the layer beside which they run; they see copies of its inputs, since the layer
            may write into them.
        take: Called with the name and the output, which it must not change.

    Yields:
        A function that runs at once those whose layers have been called; the others run at the end of the block.

    Raises:
        TypeError: If a module gives something else than one tensor.

    Example:
        >>> import torch
        >>> net, other = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), nn.Linear(3, 1)
        >>> with run_beside(net, {"1": other}, lambda name, output: print(name, tuple(output.shape))):
        ...     _ = net(torch.zeros(2, 4))
        1 (2, 1)
    """
    waiting: list[tuple[str, Any, Any]] = []

    def hook(layer: str, _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        waiting.append((layer, *pytree.tree_map_only(Tensor, torch.clone, (inputs, named))))

    def run() -> None:
        while waiting:
            layer, inputs, named = waiting.pop(0)
            take(layer, _check_tensor(layer, beside[layer](*inputs, **named)))

    with ExitStack() as hooks:
        for layer in beside:
            watched = module.get_submodule(layer)
            hooks.enter_context(watched.register_forward_pre_hook(partial(hook, layer), with_kwargs=True))
        yield run
    run()


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module run another function inside the ``with`` block; its hooks are called as ever."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
