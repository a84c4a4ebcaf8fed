"""How one sample of a tensor is laid out in a store."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def raw_bytes(values: Tensor) -> memoryview:
    """Return the bytes of a tensor, its last dimension running fastest."""
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


@dataclass(frozen=True)
class RowLayout:
    """Order of dimensions, sizes and dtype in which samples are kept.

    Strides are kept, too: what was channels_last comes back channels_last, for speed and for the same kernels.

    Attributes:
        order: The dimensions of a batch in the order of the store; samples, dimension 0, come first.
        sizes: Of one sample, in that order.
        dtype: What is kept; a narrower one than that of the batch takes less room.

    Example:
        >>> images = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
        >>> layout = RowLayout.of(images)
        >>> layout.order, layout.sizes, layout.row_bytes
        ((0, 2, 3, 1), (4, 5, 3), 240)
        >>> layout.unpack(layout.pack(images)).stride() == images.stride()
        True
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, batch: Tensor, dtype: torch.dtype | None = None) -> RowLayout:
        """Take the layout of a batch, samples in dimension 0; ``dtype`` replaces that of floats."""
        strides = batch.stride()
        inner = sorted(range(1, batch.ndim), key=lambda axis: (-strides[axis], axis))
        narrowed = dtype if dtype is not None and batch.is_floating_point() else batch.dtype
        return cls((0, *inner), tuple(batch.shape[axis] for axis in inner), narrowed)

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.sizes) * self.dtype.itemsize

    def pack(self, batch: Tensor) -> Tensor:
        """Bring a batch into the order of the store, on the CPU."""
        return batch.detach().permute(self.order).to("cpu", self.dtype).contiguous()

    def unpack(self, rows: Tensor) -> Tensor:
        """Bring rows back into the order of the batch."""
        return rows.permute([self.order.index(axis) for axis in range(len(self.order))])

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"order": self.order, "sizes": self.sizes, "dtype": str(self.dtype).removeprefix("torch.")}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> RowLayout:
        """Read what :meth:`to_json` gave."""
        return cls(tuple(content["order"]), tuple(content["sizes"]), getattr(torch, content["dtype"]))
