"""One temperature for logits that are too sure, or not sure enough."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nc_finetune.functional.class_statistics import as_labels

# Of what the logits of a sample differ by at most, on average over samples: from its 100th part to 1,000 times it.
LOWEST, HIGHEST = 1e-2, 1e3
_STEPS, _NEAR = 100, 1e-12


@torch.no_grad()
def temperature(logits: Tensor, target: Tensor) -> Tensor:
    """Find the T that minimises the mean cross-entropy of ``softmax(logits / T)``.

    The cross-entropy is convex in ``1 / T``; Newton's steps within a bracket find its minimum. T is at least a
    hundredth of the mean over samples of ``max_k logit_k - min_k logit_k``, as where all samples are right and the
    likelihood only grows as T falls, and at most 1,000 times that, as where they are no better than chance. Logits
    that are ``c`` times as large have a T that is ``c`` times as large.

    Args:
        logits: Shape ``(N, K)``, floating point, of samples that the classifier was not fitted to. Rows that are not
            finite are left out.
        target: Shape ``(N,)``, integers in ``[0, K)``.

    Returns:
        T above 0, scalar float64 tensor; 1 where no logit of a sample differs from another. It carries no gradient.

    Raises:
        ValueError: If the shapes or types do not fit, a label is out of range, or no row is finite.

    Source:
        Guo, Pleiss, Sun & Weinberger 2017, On calibration of modern neural networks, arXiv:1706.04599.

    Example:
        >>> logits = torch.tensor([[40.0, 0.0], [40.0, 0.0], [40.0, 0.0], [0.0, 40.0]])  # three of four are right
        >>> found = temperature(logits, torch.tensor([0, 0, 0, 0]))
        >>> (logits / found).softmax(1)[0].tolist()
        [0.75..., 0.25...]
    """
    labels = _checked(logits, target)
    kept = logits.isfinite().all(1)
    if not kept.any():
        raise ValueError(f"at least one row of the logits must be finite, got none of {len(logits)}")
    values, labels = logits[kept].double(), labels[kept]
    unit = (values.amax(1) - values.amin(1)).mean()
    if unit == 0:
        return torch.ones_like(unit)
    # Beside the logit of the label: sums of what is not positive where all are right, however sure they are.
    return unit / _inverse((values - values.gather(1, labels.unsqueeze(1))) / unit)


def _checked(logits: Tensor, target: Tensor) -> Tensor:
    if logits.ndim != 2 or target.shape != logits.shape[:1] or logits.shape[1] == 0:
        given = tuple(logits.shape), tuple(target.shape)
        raise ValueError(f"logits must have shape (N, K) and target (N,), got {given[0]} and {given[1]}")
    if not logits.is_floating_point() or target.is_floating_point() or target.is_complex():
        raise ValueError(f"logits must be floating point and target integers, got {logits.dtype}, {target.dtype}")
    return as_labels(target, logits[:1].new_zeros(logits.shape[1]))


def _inverse(margins: Tensor) -> float:
    """Find 1 / T: Newton's step where it stays in the bracket and halves the one before, else the bracket's middle."""
    low, high = 1 / HIGHEST, 1 / LOWEST
    if _slopes(margins, high)[0] <= 0:
        return high
    if _slopes(margins, low)[0] >= 0:
        return low
    found, last = math.sqrt(low * high), math.inf
    for _ in range(_STEPS):
        slope, curvature = _slopes(margins, found)
        low, high = (low, found) if slope > 0 else (found, high)
        step = slope / curvature if curvature > 0 else math.inf
        following = found - step
        if not low <= following <= high or abs(step) > last / 2:
            following = math.sqrt(low * high)
        found, last = following, abs(following - found)
        if last <= _NEAR * found:
            break
    return found


def _slopes(margins: Tensor, inverse: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean cross-entropy by 1 / T."""
    probabilities = (margins * inverse).softmax(1)
    weighted = probabilities.mul_(margins)
    means = weighted.sum(1)
    return means.mean().item(), ((weighted * margins).sum(1) - means.square()).mean().item()
