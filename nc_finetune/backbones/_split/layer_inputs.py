"""Inputs of layers that something beside the network looks at: seen in one pass, given again in a later one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class SplitError(ValueError):
    """The network cannot be cut there."""


class SeenInput(NamedTuple):
    """What a layer was called with: its first input, further ones by position, and by name."""

    first: Any
    others: tuple[Any, ...]
    named: dict[str, Any]


@contextmanager
def watch_seen(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, SeenInput]]:
    """Note what layers are called with in one forward pass, before anything writes into it.

    Args:
        network: The network.
        layers: Names of its submodules.

    Yields:
        Inputs by layer, filled as the pass goes on.

    Raises:
        SplitError: At the pass, if a layer is called a second time.
    """
    seen: dict[str, SeenInput] = {}

    def hook(layer: str, _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if layer in seen:
            raise SplitError(f"the forward pass calls {layer!r} more than once")
        first, *others = inputs or (None,)
        seen[layer] = SeenInput(first.clone() if isinstance(first, Tensor) else first, tuple(others), named)

    with ExitStack() as hooks:
        for layer in layers:
            module = network.get_submodule(layer)
            hooks.enter_context(module.register_forward_pre_hook(partial(hook, layer), with_kwargs=True))
        yield seen


class LayerInput(NamedTuple):
    """How the input of a layer is kept: the first one with samples in front, the others as they ever are.

    Attributes:
        axis: The dimension of the samples in the first input.
        dtype: Of the first input.
        others: Further inputs by position, which do not depend on the samples.
        named: And by name.
    """

    axis: int
    dtype: torch.dtype
    others: tuple[Any, ...]
    named: dict[str, Any]

    @classmethod
    def of(cls, layer: str, few: SeenInput | None, more: SeenInput | None) -> LayerInput:
        """Look at what a layer was called with for two samples and for three.

        Raises:
            SplitError: If it was not called, its first input is no tensor, or others depend on the samples.
        """
        if few is None or more is None:
            raise SplitError(f"the forward pass does not call {layer!r}")
        if not (isinstance(few.first, Tensor) and isinstance(more.first, Tensor)):
            raise SplitError(f"what {layer!r} sees is not one tensor")
        if not _same((few.others, few.named), (more.others, more.named)):
            raise SplitError(f"what {layer!r} sees beside its first input depends on the samples")
        axis = samples_axis(few.first.shape, more.first.shape, layer)
        return cls(axis, few.first.dtype, few.others, few.named)

    @contextmanager
    def given(self, layer: nn.Module, kept: Tensor) -> Iterator[None]:
        """Let whoever looks at a layer's input see what was kept, whatever it is called with."""
        first = kept.to(self.dtype).movedim(0, self.axis)

        def enter(_module: nn.Module, _inputs: Any, _named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return (first, *self.others), self.named

        with layer.register_forward_pre_hook(enter, prepend=True, with_kwargs=True):
            yield


def samples_axis(few: Sequence[int], more: Sequence[int], layer: str) -> int:
    """Tell which dimension is that of the samples, from shapes for two of them and for three.

    Raises:
        SplitError: If none is, or others change, too.

    Example:
        >>> samples_axis((5, 2, 8), (5, 3, 8), "blocks.3")
        1
    """
    grown = [axis for axis, (a, b) in enumerate(zip(few, more, strict=True)) if (a, b) == (2, 3)]
    if len(grown) != 1 or sum(a != b for a, b in zip(few, more, strict=True)) != 1:
        raise SplitError(f"no dimension of what {layer!r} sees, {tuple(few)} for two images, is that of the samples")
    return grown[0]


def _same(few: Any, more: Any) -> bool:
    (ours, kind), (theirs, other_kind) = pytree.tree_flatten(few), pytree.tree_flatten(more)
    return kind == other_kind and all(map(_equal, ours, theirs))


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return ours.shape == theirs.shape and torch.equal(ours, theirs)
    return bool(ours is theirs or ours == theirs)
