"""Distributions of scores as short tables, that travel with a model."""

from __future__ import annotations

import torch
from torch import Tensor

from nc_finetune.functional.conformal import conformal_rank

STEPS = 1000  # of a table: a share is known to a thousandth


def quantile_table(values: Tensor) -> Tensor:
    """Return the quantiles of values, from the smallest to the largest, 1,001 of them.

    Args:
        values: Shape ``(N,)``; those that are not finite are left out.

    Returns:
        Shape ``(1001,)``; empty where there are none.

    Example:
        >>> quantile_table(torch.tensor([0.0, 10.0]))[[0, 500, 1000]]
        tensor([ 0.,  5., 10.], dtype=torch.float64)
    """
    known = values[values.isfinite()].double().sort().values
    if not len(known):
        return known
    places = torch.linspace(0, len(known) - 1, STEPS + 1, dtype=torch.float64, device=known.device)
    below = places.floor().long().clamp(max=max(0, len(known) - 2))
    above = (below + 1).clamp(max=len(known) - 1)
    return torch.lerp(known[below], known[above], places - below)


def share_above(table: Tensor, values: Tensor) -> Tensor:
    """Return which share of what a table is of lies above values; between its quantiles it goes in straight lines.

    Args:
        table: A :func:`quantile_table`.
        values: Shape ``(N,)``.

    Returns:
        In ``[0, 1]``, shape ``(N,)``.

    Example:
        >>> table = quantile_table(torch.arange(101.0))
        >>> share_above(table, torch.tensor([-5.0, 25.0, 200.0], dtype=torch.float64))
        tensor([1.0000, 0.7500, 0.0000], dtype=torch.float64)
    """
    steps = len(table) - 1
    # Not searchsorted, which programs for other runtimes lack.
    below = (values.unsqueeze(1) >= table).sum(1).clamp(1, steps) - 1
    low, high = table[below], table[below + 1]
    width = high - low
    along = torch.where(width > 0, (values - low) / torch.where(width > 0, width, 1), (values >= high).to(low))
    return 1 - (below + along.clamp(0, 1)) / steps


def score_table(scores: Tensor) -> Tensor:
    """Return sorted scores, or of more than 1,001 the quantiles that are at least as large, for :func:`threshold_of`.

    Args:
        scores: Shape ``(N,)``; those that are not finite are left out.

    Returns:
        Shape ``(min(N, 1001),)``.

    Example:
        >>> score_table(torch.tensor([0.5, 0.1, torch.nan]))
        tensor([0.1000, 0.5000])
        >>> len(score_table(torch.rand(5000)))
        1001
    """
    known = scores[scores.isfinite()].sort().values
    if len(known) <= STEPS + 1:
        return known
    ranks = -(-torch.arange(STEPS + 1, device=known.device) * len(known) // STEPS)
    return known[ranks.clamp(min=1) - 1]


def threshold_of(table: Tensor, number: int, coverage: float) -> Tensor:
    """Return :func:`~nc_finetune.functional.conformal.conformal_threshold` of scores by their table, or a little more.

    Args:
        table: A :func:`score_table`.
        number: N of its scores.
        coverage: In ``(0, 1)``.

    Returns:
        A scalar; infinite where there are too few scores.

    Raises:
        ValueError: If the coverage is out of range.

    Example:
        >>> threshold_of(score_table(torch.arange(1, 20) / 20), 19, 0.9)
        tensor(0.9000)
    """
    rank = conformal_rank(number, coverage)
    if rank > number:
        return table.new_tensor(torch.inf)
    return table[rank - 1 if number <= STEPS + 1 else -(-rank * STEPS // number)]
