"""What a run costs from beginning to end: time, processors, and arithmetic that is counted."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from torch.utils.flop_counter import FlopCounterMode


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
    counter = FlopCounterMode(display=False) if flops else None
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
