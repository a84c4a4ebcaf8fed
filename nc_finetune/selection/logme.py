"""LogME: how well a Bayesian linear model on frozen features explains the labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from nc_finetune.functional.class_statistics import as_labels
from nc_finetune.functional.undefined import warn_undefined

_STEPS = 100
_TOLERANCE = 1e-5


def logme(features: Tensor, labels: Tensor, num_classes: int) -> float:
    r"""Log of the maximum evidence, per sample, mean over one-against-all targets; higher is better.

    For each class that occurs the evidence of ``y = F w + noise`` with ``w ~ N(0, 1/alpha)`` and noise ``N(0, 1/beta)``
    is maximised over alpha and beta by MacKay's fixed point, which the singular values of F make cheap. A class without
    samples leaves nothing to explain: its evidence would grow without bound.

    Args:
        features: F, shape ``(N, D)``.
        labels: Shape ``(N,)``, integers of any dtype in ``[0, K)``.
        num_classes: K.

    Returns:
        The mean over the classes that occur of the maximum log evidence, divided by N; ``nan``, with a warning, where
        the features are not finite or zero, or squares of them leave the range of float64.

    Raises:
        ValueError: If there are fewer than two samples, or a label is out of range.

    Source:
        You, Liu, Wang & Long 2021, LogME: practical assessment of pre-trained models for transfer learning,
        arXiv:2102.11005; You et al. 2022, arXiv:2110.10545, for the fixed point.

    Example:
        >>> features = torch.tensor([[0.0], [0.1], [1.0], [1.1]])
        >>> close = logme(features, torch.tensor([0, 0, 1, 1]), 2)
        >>> close > logme(features, torch.tensor([0, 1, 0, 1]), 2)
        True
    """
    if len(features) < 2:
        raise ValueError(f"LogME needs at least 2 samples, got {len(features)}")
    labels = as_labels(labels, features.new_zeros(num_classes))
    if reason := _why_undefined(features):
        warn_undefined("LogME", reason)
        return math.nan
    left, singular, _ = torch.linalg.svd(features.double(), full_matrices=False)
    targets = one_hot(labels, num_classes)
    targets = targets[:, targets.any(0)].double()
    squares = singular.square()
    projected = (left.T @ targets).square()  # (R, K): the part of each target along each direction
    rest = (targets.square().sum(0) - projected.sum(0)).clamp(min=0)
    evidences = [
        _evidence(squares, projected[:, place], float(rest[place]), *features.shape) for place in range(len(rest))
    ]
    value = sum(evidences) / len(evidences)
    if not math.isfinite(value):
        warn_undefined("LogME", "features are too small or too large for the fixed point in float64")
        return math.nan
    return value


def _why_undefined(features: Tensor) -> str | None:
    if not features.isfinite().all():
        return "the features are not finite"
    return None if features.any() else "the features are zero"


def _evidence(squares: Tensor, projected: Tensor, rest: float, samples: int, width: int) -> float:
    """Maximise the evidence of one target; ``nan`` where squares underflow, or drown the prior."""
    try:
        return _maximum(squares, projected, rest, samples, width)
    except (ArithmeticError, ValueError):  # a division by zero, or the logarithm of it
        return math.nan


def _maximum(squares: Tensor, projected: Tensor, rest: float, samples: int, width: int) -> float:
    ratio = 1.0  # alpha / beta
    for _ in range(_STEPS):
        alpha, beta, fit, weights = _update(squares, projected, rest, samples, ratio)
        new = alpha / beta
        if abs(new - ratio) <= _TOLERANCE * ratio:
            break
        ratio = new
    alpha, beta, fit, weights = _update(squares, projected, rest, samples, ratio)
    curvature = torch.log(alpha + beta * squares).sum().item() + (width - len(squares)) * math.log(alpha)
    log_evidence = (
        width / 2 * math.log(alpha)
        + samples / 2 * math.log(beta)
        - samples / 2 * math.log(2 * math.pi)
        - beta / 2 * fit
        - alpha / 2 * weights
        - curvature / 2
    )
    return log_evidence / samples


def _update(
    squares: Tensor, projected: Tensor, rest: float, samples: int, ratio: float
) -> tuple[float, float, float, float]:
    """Return alpha, beta, the squared residual and the squared weights."""
    shrunk = squares / (squares + ratio)
    effective = shrunk.sum().item()
    tiny = torch.finfo(torch.float64).tiny
    weights = max((squares * projected / (squares + ratio).square()).sum().item(), tiny)
    fit = max(rest + ((1 - shrunk).square() * projected).sum().item(), samples * 1e-12)
    return effective / weights, (samples - effective) / fit, fit, weights
