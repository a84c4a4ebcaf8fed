"""Class weights for imbalanced data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def class_weights(counts: Sequence[int] | Tensor, beta: float = 1.0) -> Tensor:
    """Weigh classes by one over their effective number of samples, ``(1 - beta) / (1 - beta^n_k)``, of mean 1.

    Args:
        counts: Number of training samples of each class, n_k, at least 1.
        beta: In ``[0, 1]``: 0 weighs all the same, 1 (the limit) by inverse frequency ``1 / n_k``; the paper's are
            0.9, 0.99, 0.999 and 0.9999.

    Returns:
        Shape ``(K,)``, of the default dtype; they add up to K.

    Raises:
        ValueError: If a count is below 1, or beta lies outside.

    Source:
        Cui et al. 2019, Class-balanced loss based on effective number of samples, arXiv:1901.05555.

    Example:
        >>> class_weights([10, 30]).tolist()
        [1.5, 0.5]
    """
    numbers = torch.as_tensor(counts, dtype=torch.float64)
    if numbers.ndim != 1 or len(numbers) == 0 or not numbers.isfinite().all() or numbers.min() < 1:
        raise ValueError(
            f"counts must hold one number of at least 1 for each class, got {numbers.tolist()};"
            " a class without samples has no weight: leave it out, or get samples"
        )
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")
    if beta == 1:
        effective = numbers
    else:
        # expm1: 1 - beta^n cancels for beta close to 1.
        effective = -torch.expm1(numbers * math.log(beta)) if beta > 0 else torch.ones_like(numbers)
    weights = 1 / effective
    return (weights / weights.mean()).to(torch.get_default_dtype())
