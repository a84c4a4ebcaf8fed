"""The law of data separation: how fast within-class variability falls from layer to layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nc_finetune.functional.undefined import named, warn_undefined


class SeparationLaw(NamedTuple):
    """A straight line through the logarithm of a measure against depth.

    Attributes:
        slope: Change of ``log value`` a layer; ``exp(slope)`` is the decay ratio.
        intercept: ``log value`` at the first layer.
        r_squared: Share of the variance that the line explains, in ``[0, 1]``; ``nan``, with a warning, where all
            values are the same.
    """

    slope: Tensor
    intercept: Tensor
    r_squared: Tensor


def separation_law(values: Tensor) -> SeparationLaw:
    """Fit ``log value = intercept + slope * layer`` by least squares.

    Args:
        values: The trace ratio, or NC1, of each layer in order, shape ``(L,)`` with L of at least 2; positive.

    Returns:
        Scalars, float64; all ``nan``, with a warning, if a value is not positive and finite, which has no logarithm.

    Raises:
        ValueError: If there are fewer than two layers.

    Source:
        He & Su 2023, A law of data separation in deep learning, 10.1073/pnas.2221704120.

    Example:
        >>> import torch
        >>> law = separation_law(torch.tensor([8.0, 4.0, 2.0, 1.0]))
        >>> round(law.slope.exp().item(), 6), round(law.r_squared.item(), 6)  # each layer halves it
        (0.5, 1.0)
    """
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values of at least two layers are needed, shape (L,), got {tuple(values.shape)}")
    known = (values > 0) & values.isfinite()
    if not known.all():
        warn_undefined("separation law", f"the value of layer {named(~known)} is not positive and finite")
    logs = torch.where(known, values.double(), torch.nan).log()
    depth = torch.arange(len(values), dtype=logs.dtype, device=logs.device)
    from_middle = depth - depth.mean()
    slope = (from_middle * logs).sum() / from_middle.square().sum()
    intercept = logs.mean() - slope * depth.mean()
    residual = (logs - intercept - slope * depth).square().sum()
    total = (logs - logs.mean()).square().sum()
    # What a mean of equal values leaves of them is rounding.
    same = total <= (len(logs) * torch.finfo(logs.dtype).eps * logs.abs().max()).square()
    if same:
        warn_undefined("R² of the separation law", "all values are the same")
    return SeparationLaw(slope, intercept, torch.where(same, torch.nan, 1 - residual / total))
