"""NC1: within-class variability collapse."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

from nc_finetune.functional.class_statistics import ClassStatistics, empty_class_statistics, update_class_statistics

Normalize = Literal["none", "classes"]
Between = Literal["classes", "samples"]


def _between_class_factor(statistics: ClassStatistics, between: Between) -> tuple[Tensor, Tensor]:
    """Return M of shape (K, D) with Sigma_B = M^T M, and the size of what is no more than rounding in it.

    M holds the centred class means times the root of their weight. Its entries carry the rounding of the means
    themselves, so what counts is how large these are before centring; that of a running mean grows like sqrt(N).
    """
    counts, means, _ = statistics
    weights = counts / counts.sum() if between == "samples" else torch.full_like(counts, 1 / counts.numel())
    roots = weights.sqrt().unsqueeze(1)
    steps = max(means.shape) + counts.sum().sqrt()
    rounding = torch.finfo(means.dtype).eps * steps * torch.linalg.vector_norm(roots * means)
    return roots * (means - torch.mv(means.T, weights)), rounding.detach()


def _undefined_reason(statistics: ClassStatistics) -> str | None:
    """Say why no between-class covariance exists, or None where it does."""
    counts, means, _ = statistics
    if counts.numel() < 2:
        return "NC1 needs at least two classes"
    if missing := (counts == 0).nonzero().flatten().tolist():
        return f"no samples of class {', '.join(map(str, missing))}"
    if not means.isfinite().all():
        return "the features are not finite"
    factor, rounding = _between_class_factor(statistics, "classes")
    if torch.linalg.vector_norm(factor) <= rounding:
        return "all class means coincide (Sigma_B = 0)"
    return None


def nc1_from_statistics(
    statistics: ClassStatistics, normalize: Normalize = "none", between: Between = "classes"
) -> Tensor:
    """Compute NC1 from the sums of a pass; see :func:`nc1`.

    Args:
        statistics: Sums of :func:`~nc_finetune.functional.update_class_statistics`.
        normalize: As in :func:`nc1`.
        between: As in :func:`nc1`.

    Returns:
        Scalar float64 tensor; ``nan``, with a warning that says why, where NC1 is undefined.

    Example:
        >>> import torch
        >>> sums = empty_class_statistics(2, 2)
        >>> batch = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.3], [-1.0, -0.3]])
        >>> nc1_from_statistics(update_class_statistics(sums, batch, torch.tensor([0, 0, 1, 1]))).item()
        0.0
    """
    if reason := _undefined_reason(statistics):
        warnings.warn(f"NC1 is undefined and reported as nan: {reason}.", stacklevel=2)
        return statistics.means.new_tensor(float("nan"))
    factor, rounding = _between_class_factor(statistics, between)
    # Sigma_B^+ = P P^T with P = pinv(M), cut on the singular values of M: squaring M first would lose half the digits.
    inverse = torch.linalg.pinv(factor, atol=rounding, rtol=0.0)  # (D, K)
    value: Tensor = ((statistics.scatter @ inverse) * inverse).sum() / statistics.counts.sum()
    return value / statistics.counts.numel() if normalize == "classes" else value


def nc1(
    features: Tensor,
    target: Tensor,
    num_classes: int | None = None,
    normalize: Normalize = "none",
    between: Between = "classes",
) -> Tensor:
    r"""Within-class variability collapse, ``NC1 = tr(Sigma_W Sigma_B^+)``, in ``[0, inf)``; 0 when collapsed.

    ``Sigma_W = 1/N sum_i (h_i - m_{y_i})(h_i - m_{y_i})^T`` is the within-class covariance. ``Sigma_B`` is the
    covariance of the class means: ``1/K sum_k (m_k - m_G)(m_k - m_G)^T`` around the mean of the class means
    (``between="classes"``), or ``1/N sum_k n_k (m_k - m_G)(m_k - m_G)^T`` around the sample mean
    (``between="samples"``, the convention of linear discriminant analysis).

    Differentiable in ``features``. NC1 depends on the number of samples: compare values at equal N only.

    Args:
        features: Shape ``(N, D)``, floating point.
        target: Shape ``(N,)``, integers in ``[0, K)``.
        num_classes: K; ``None`` takes the largest label plus one.
        normalize: ``"none"`` for the formula above, ``"classes"`` divides by K as the code of the papers does.
        between: Weights of the class means in ``Sigma_B``.

    Returns:
        Scalar float64 tensor; ``nan``, with a warning that says why, for fewer than two classes, a class without
        samples, or class means that coincide.

    Raises:
        ValueError: If the shapes do not fit or a label lies outside ``[0, K)``.

    Source:
        Papyan, Han & Donoho 2020, Prevalence of neural collapse, 10.1073/pnas.2015509117.

    Example:
        >>> import torch
        >>> features = torch.tensor([[2.0, 0.0], [4.0, 0.0], [-2.0, 0.0], [-4.0, 0.0]])
        >>> round(nc1(features, torch.tensor([0, 0, 1, 1])).item(), 4)  # spread 1 around means +-3
        0.1111
    """
    if features.ndim != 2 or target.shape != features.shape[:1]:
        raise ValueError(
            f"features must have shape (N, D) and target (N,), got {tuple(features.shape)} and {tuple(target.shape)};"
            " pool maps and tokens to one vector per sample first"
        )
    if target.numel() == 0:
        raise ValueError("NC1 needs at least one sample, got none")
    num_classes = int(target.max()) + 1 if num_classes is None else num_classes
    if target.min() < 0 or target.max() >= num_classes:
        raise ValueError(f"labels must lie in [0, {num_classes}), got {int(target.min())} to {int(target.max())}")
    empty = empty_class_statistics(num_classes, features.shape[1], features.device)
    return nc1_from_statistics(update_class_statistics(empty, features, target), normalize, between)
