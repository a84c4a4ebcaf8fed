"""The between-class covariance, as a factor whose square it is."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nc_finetune.functional.class_statistics import ClassStatistics
from nc_finetune.functional.undefined import named, warn_undefined

Between = Literal["classes", "samples"]
# Of means of features in single precision, relative to their length. The smallest singular value of any layer of
# EfficientNet-Lite0 on CIFAR-100 and on digits is hundreds of times larger.
_ROUNDING = 4 * torch.finfo(torch.float32).eps


def between_class_factor(statistics: ClassStatistics, between: Between = "classes") -> tuple[Tensor, Tensor]:
    """Return M with ``Sigma_B = M^T M``, and the size of what is no more than rounding in it.

    M holds the centred class means times the root of their weight: 1/K each around the mean of the class means
    (``between="classes"``), or n_k/N around the sample mean (``between="samples"``). Its entries carry the rounding of
    the features, so what counts is how large the means are before centring. Networks compute in single precision at
    best: along directions in which classes differ by less, such as most of a convolution of grey images, nothing is
    known, and NC1 would weigh rounding by rounding.

    Args:
        statistics: Sums of a pass.
        between: Weights of the classes.

    Returns:
        M of shape ``(K, D)``, and a scalar: singular values of M up to it are zero.

    Example:
        >>> import torch
        >>> from nc_finetune.functional import class_statistics
        >>> statistics = class_statistics(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]))
        >>> between_class_factor(statistics)[0].round(decimals=4).tolist()
        [[-0.7071], [0.7071]]
    """
    counts, means = statistics.counts, statistics.means
    weights = counts / counts.sum() if between == "samples" else torch.full_like(counts, 1 / counts.numel())
    roots = weights.sqrt().unsqueeze(1)
    rounding = _ROUNDING * torch.linalg.vector_norm(roots * means.detach())
    return roots * (means - torch.mv(means.T, weights)), rounding


def undefined_reason(statistics: ClassStatistics) -> str | None:
    """Say why the features have no between-class covariance, or ``None`` where they have.

    Args:
        statistics: Sums of a pass.

    Returns:
        Fewer than two classes, classes without samples (named), features that are not finite, or class means that
        coincide up to the rounding of single precision.

    Example:
        >>> from nc_finetune.functional import empty_class_statistics
        >>> undefined_reason(empty_class_statistics(3, 2))
        'no samples of class 0, 1, 2'
    """
    counts, means = statistics.counts, statistics.means
    if counts.numel() < 2:
        return "at least two classes are needed"
    if (missing := counts == 0).any():
        return f"no samples of class {named(missing)}"
    if not (means.isfinite().all() and statistics.spreads.isfinite().all()):
        return "the features are not finite"
    factor, rounding = between_class_factor(statistics)
    if torch.linalg.vector_norm(factor) <= rounding:
        return "all class means coincide, up to the rounding of single precision (Sigma_B = 0)"
    return None


def is_undefined(statistics: ClassStatistics, measure: str) -> bool:
    """Tell whether a measure is undefined; if so, warn once and say why.

    Args:
        statistics: Sums of a pass.
        measure: Its name in the warning.

    Returns:
        Whether the caller must report ``nan``.
    """
    reason = undefined_reason(statistics)
    if reason is not None:
        warn_undefined(measure, reason)
    return reason is not None
