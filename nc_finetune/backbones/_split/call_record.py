"""What the modules of a network give in a forward pass, as shapes that follow the number of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Shape:
    """Shape and dtype of a tensor; with slopes, for any number N of samples: ``sizes + slopes * N``.

    Example:
        >>> few, more = Shape((2, 5), torch.float32), Shape((3, 5), torch.float32)
        >>> few.through(2, more, 3).blank(4, torch.device("cpu")).shape
        torch.Size([4, 5])
    """

    sizes: tuple[int, ...]
    dtype: torch.dtype
    slopes: tuple[int, ...] = ()

    def through(self, number: int, more: Shape, larger: int) -> Shape:
        """Draw a line through the shapes that were seen with two numbers of samples."""
        pairs = list(zip(self.sizes, more.sizes, strict=True))
        slopes = tuple((b - a) // (larger - number) for a, b in pairs)
        offsets = (a - number * slope for (a, _), slope in zip(pairs, slopes, strict=True))
        return Shape(tuple(offsets), self.dtype, slopes)

    def blank(self, number: int, device: torch.device) -> Tensor:
        """Return a tensor of that shape that takes no memory: ``nan``, or zero if it holds no floats."""
        sizes = [offset + slope * number for offset, slope in zip(self.sizes, self.slopes, strict=True)]
        fill = torch.nan if self.dtype.is_floating_point else 0
        return torch.full((), fill, dtype=self.dtype, device=device).expand(sizes)


def _describe(value: Any) -> Any:
    return Shape(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


@dataclass
class CallRecord:
    """The outermost modules that a forward pass has come through, in order, and what they gave.

    Attributes:
        number: Samples that were passed.
        calls: Modules and their outputs, with shapes in place of tensors.
        called: Every module that has given something, inner ones, too.
    """

    number: int
    calls: list[tuple[nn.Module, Any]] = field(default_factory=list)
    called: set[nn.Module] = field(default_factory=set)

    def growing(self, more: CallRecord) -> dict[nn.Module, list[Any]]:
        """Join two records of one network into outputs for any number of samples.

        Args:
            more: The record of another number of samples.

        Returns:
            For each module, and each time that it was called, its output with growing shapes in place of tensors;
            ``None`` where it does not depend on the number of samples, such as a table of positions.

        Raises:
            ValueError: If other modules were called, or other structures came out.
        """
        if [module for module, _ in self.calls] != [module for module, _ in more.calls]:
            raise ValueError("which modules are called depends on the number of samples")
        joined: dict[nn.Module, list[Any]] = {}
        for (module, few), (_, many) in zip(self.calls, more.calls, strict=True):
            joined.setdefault(module, []).append(None if few == many else self._join(more, few, many))
        return joined

    def _join(self, more: CallRecord, few: Any, many: Any) -> Any:
        def line(a: Any, b: Any) -> Any:
            return a.through(self.number, b, more.number) if isinstance(a, Shape) else a

        return pytree.tree_map(line, few, many)


@contextmanager
def record_calls(network: nn.Module, number: int, seen_through: Sequence[str] = ()) -> Iterator[CallRecord]:
    """Record which modules the next forward pass runs through.

    Args:
        network: The network; it may be stopped on its way.
        number: Samples that will be passed.
        seen_through: Names of layers; the modules around them are not recorded, but those inside these.

    Yields:
        The record, filled as the pass goes on.
    """
    record = CallRecord(number)
    starts: list[int] = []
    around = {network, *(parent for layer in seen_through for parent in _parents(network, layer))}

    def enter(_module: nn.Module, _inputs: Any) -> None:
        starts.append(len(record.calls))

    def leave(module: nn.Module, _inputs: Any, output: Any) -> None:
        start = starts.pop()
        record.called.add(module)
        if module not in around:
            record.calls[start:] = [(module, pytree.tree_map(_describe, output))]

    with ExitStack() as hooks:
        for module in network.modules():
            hooks.enter_context(module.register_forward_pre_hook(enter))
            hooks.enter_context(module.register_forward_hook(leave))
        yield record


def _parents(network: nn.Module, layer: str) -> list[nn.Module]:
    parts = layer.split(".")
    return [network.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts))]


def give_blanks(
    outputs: Sequence[Any], number: int, device: torch.device, otherwise: Callable[..., Any]
) -> Callable[..., Any]:
    """Build a forward function that gives blanks in place of what was recorded.

    Args:
        outputs: One for each call, as of :meth:`CallRecord.growing`.
        number: Samples.
        device: Where the blanks are.
        otherwise: Called for outputs that do not depend on the samples, and past the last recorded call.
    """
    remaining = iter(outputs)

    def blank(value: Any) -> Any:
        return value.blank(number, device) if isinstance(value, Shape) else value

    def forward(*inputs: Any, **named: Any) -> Any:
        recorded = next(remaining, None)
        return otherwise(*inputs, **named) if recorded is None else pytree.tree_map(blank, recorded)

    return forward
