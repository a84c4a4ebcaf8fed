"""What is said of a measure that has no value: never a number, never an error in the middle of a fit."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

_MAX_NAMED = 20  # in a message


def warn_undefined(measure: str, reason: str) -> None:
    """Warn once that a measure is reported as ``nan``, and say why.

    Args:
        measure: Its name.
        reason: What the data lack.
    """
    warnings.warn(f"{measure} is undefined and reported as nan: {reason}.", stacklevel=3)


def nan_like(value: Tensor) -> Tensor:
    """Return a float64 scalar ``nan`` on the device of a tensor.

    Example:
        >>> nan_like(torch.ones(2))
        tensor(nan, dtype=torch.float64)
    """
    return torch.full((), float("nan"), dtype=torch.float64, device=value.device)


def named(numbers: Tensor) -> str:
    """Name where a mask holds, the first few.

    Args:
        numbers: Booleans, shape ``(K,)``.

    Returns:
        The places.

    Example:
        >>> named(torch.tensor([True, False, True]))
        '0, 2'
    """
    places = numbers.nonzero().flatten().tolist()
    further = f" and {len(places) - _MAX_NAMED} more of {len(numbers)}" if len(places) > _MAX_NAMED else ""
    return f"{', '.join(map(str, places[:_MAX_NAMED]))}{further}"
