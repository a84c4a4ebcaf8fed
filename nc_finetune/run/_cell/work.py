"""What a run costs from beginning to end: time, processors, and arithmetic that is counted."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


# By shapes; torch counts attention on a CPU as nothing.
_OF_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@dataclass
class Work:
    """What was spent; complete when the work is done.

    Attributes:
        seconds: Time on the clock.
        processor_seconds: Time of all processors, on this process and on those that it has waited for.
        flops: Floating-point operations of convolutions, matrix products and attention in this process, where one
            multiplication and one addition are two. Neither activations and norms are counted, which are little beside
            them, nor the linear algebra of solved heads. ``None`` where nothing was counted.
    """

    seconds: float = 0.0
    processor_seconds: float = 0.0
    flops: int | None = None


@contextmanager
def counted_work(flops: bool = False) -> Iterator[Work]:
    """Measure what is spent inside.

    Args:
        flops: Whether arithmetic is counted, which takes a fifth to a half of the time again.

    Example:
        >>> import torch
        >>> with counted_work(flops=True) as work:
        ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
        >>> work.flops
        48
    """
    work = Work()
    start, processors = time.perf_counter(), _processor_seconds()
    counter = FlopCounterMode(display=False, custom_mapping=_OF_CPU) if flops else None
    try:
        with counter or nullcontext():
            yield work
    finally:
        work.seconds = time.perf_counter() - start
        work.processor_seconds = _processor_seconds() - processors
        work.flops = counter.get_total_flops() if counter else None


def _processor_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
