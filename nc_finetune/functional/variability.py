"""NC1, within-class variability collapse, and its relatives."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nc_finetune.functional.between_class import Between, between_class_factor, is_undefined
from nc_finetune.functional.class_statistics import (
    ClassStatistics,
    class_statistics,
    row_chunks,
    spread_along,
    within_class_scatter,
)
from nc_finetune.functional.collapse_by_class import pair_ratios
from nc_finetune.functional.undefined import nan_like, warn_undefined

Normalize = Literal["none", "classes"]


def _nan(statistics: ClassStatistics) -> Tensor:
    return nan_like(statistics.means)


def whitener(statistics: ClassStatistics, between: Between) -> Tensor:
    """Return P of shape (D, K) with Sigma_B^+ = P P^T.

    P is the pseudo-inverse of M, Sigma_B = M^T M, cut on the singular values of M: squaring M first would lose half
    the digits. Unlike a singular value decomposition it is differentiable at a perfect simplex.

    Args:
        statistics: Sums of a pass.
        between: As for :func:`nc1`.

    Example:
        >>> statistics = class_statistics(torch.tensor([[2.0], [-2.0]]), torch.tensor([0, 1]))
        >>> whitener(statistics, "classes").square().sum().round(decimals=4).item()  # Sigma_B = 4
        0.25
    """
    factor, rounding = between_class_factor(statistics, between)
    projector: Tensor = torch.linalg.pinv(factor, atol=rounding, rtol=0.0)
    return projector


def projected_spread(projector: Tensor, means: Tensor, features: Tensor, target: Tensor) -> Tensor:
    """Sum |P^T (h_i - m_{y_i})|^2 over a batch: what NC1 needs of features that are too wide for a scatter.

    Args:
        projector: P, shape ``(D, K)``, of :func:`whitener`.
        means: Class means, shape ``(K, D)``.
        features: Shape ``(N, D)``.
        target: Shape ``(N,)``.
    """
    parts = [
        ((chunk.to(means.dtype) - means.index_select(0, labels.long())) @ projector).square().sum()
        for chunk, labels in row_chunks(features, target)
    ]
    return torch.stack(parts).sum() if parts else means.new_zeros(())


def _nc1_compute(
    statistics: ClassStatistics, normalize: Normalize, between: Between, projected: Tensor | None = None
) -> Tensor:
    """Compute NC1 from the scatter, or from the projected spread of a second pass."""
    if projected is None:
        projected = spread_along(statistics, whitener(statistics, between))
    value = projected / statistics.counts.sum()
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

    Directions along which class means differ by less than single precision rounds, 5e-7 of their size, are left out,
    also of features in double precision.

    Differentiable in ``features``. NC1 depends on the number of samples: compare values at equal N only. Features
    wider than 8,192 are projected in a second pass, in memory O(K D).

    Args:
        features: Shape ``(N, D)``, floating point.
        target: Shape ``(N,)``, integers in ``[0, K)``.
        num_classes: K; ``None`` takes the largest label plus one.
        normalize: ``"none"`` for the formula above, ``"classes"`` divides by K as the code of the papers does.
        between: Weights of the class means in ``Sigma_B``.

    Returns:
        Scalar float64 tensor; ``nan``, with a warning that says why, for fewer than two classes, a class without
        samples, features that are not finite, or class means that coincide.

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
    statistics = class_statistics(features, target, num_classes)
    if is_undefined(statistics, "NC1"):
        return _nan(statistics)
    projected = None
    if statistics.scatter is None:
        projected = projected_spread(whitener(statistics, between), statistics.means, features, target)
    return _nc1_compute(statistics, normalize, between, projected)


def _trace_ratio_compute(statistics: ClassStatistics, between: Between) -> Tensor:
    factor, _ = between_class_factor(statistics, between)
    return statistics.spreads.sum() / statistics.counts.sum() / factor.square().sum()


def trace_ratio(
    features: Tensor, target: Tensor, num_classes: int | None = None, between: Between = "classes"
) -> Tensor:
    """Ratio of the traces, ``tr Sigma_W / tr Sigma_B``, in ``[0, inf)``; 0 when collapsed.

    The separation D_l of progressive-separation studies: cheaper and less strict than :func:`nc1`, which weighs each
    direction of ``Sigma_B`` by itself. With ``between="samples"`` it is ``(N - K) / ((K - 1) CH)`` with CH the
    Calinski-Harabasz score.

    Args:
        features: Shape ``(N, D)``, floating point.
        target: Shape ``(N,)``, integers in ``[0, K)``.
        num_classes: K; ``None`` takes the largest label plus one.
        between: As for :func:`nc1`.

    Returns:
        Scalar float64 tensor; ``nan``, with a warning, where it is undefined.

    Source:
        Wang et al. 2023, Understanding deep representation learning via layerwise feature compression and
        discrimination, arXiv:2311.02960.

    Example:
        >>> import torch
        >>> features = torch.tensor([[2.0, 1.0], [4.0, 1.0], [-2.0, 1.0], [-4.0, 1.0]])
        >>> round(trace_ratio(features, torch.tensor([0, 0, 1, 1])).item(), 4)
        0.1111
    """
    statistics = class_statistics(features, target, num_classes)
    return _nan(statistics) if is_undefined(statistics, "trace ratio") else _trace_ratio_compute(statistics, between)


def _cdnv_compute(statistics: ClassStatistics) -> Tensor:
    ratios = pair_ratios(statistics)
    if ratios.isnan().any():
        warn_undefined("CDNV", "two classes have one mean and no spread around it")
    return ratios.mean()


def cdnv(features: Tensor, target: Tensor, num_classes: int | None = None) -> Tensor:
    """Class-distance normalised variance, in ``[0, inf]``; 0 when collapsed.

    The mean over pairs of classes of ``(v_k + v_l) / (2 |m_k - m_l|^2)``, with v_k the trace of class k's own
    covariance. It is infinite where two, but not all, class means coincide and their classes do spread, and undefined
    where they do not.

    Args:
        features: Shape ``(N, D)``, floating point.
        target: Shape ``(N,)``, integers in ``[0, K)``.
        num_classes: K; ``None`` takes the largest label plus one.

    Returns:
        Scalar float64 tensor; ``nan``, with a warning, where it is undefined.

    Source:
        Galanti, György & Hutter 2022, On the role of neural collapse in transfer learning, arXiv:2112.15121.

    Example:
        >>> import torch
        >>> features = torch.tensor([[2.0], [4.0], [-2.0], [-4.0]])
        >>> round(cdnv(features, torch.tensor([0, 0, 1, 1])).item(), 4)  # (1 + 1) / (2 * 6^2)
        0.0278
    """
    statistics = class_statistics(features, target, num_classes)
    return _nan(statistics) if is_undefined(statistics, "CDNV") else _cdnv_compute(statistics)


def _rank_between(statistics: ClassStatistics) -> Tensor:
    factor, rounding = between_class_factor(statistics, "samples")
    rank: Tensor = torch.linalg.matrix_rank(factor, atol=rounding, rtol=0.0)
    return rank


def _unexplained(statistics: ClassStatistics) -> Tensor:
    """Compute ``rank Sigma_B - tr(Sigma_T^+ Sigma_B)`` without taking the small difference of the two.

    By the Schur complement it is ``tr(E (I + E)^-1)``, where E is the within-class covariance along the directions of
    Sigma_B, each in units of its own spread of the class means, as far as the other directions do not predict it.
    """
    factor, single = between_class_factor(statistics, "samples")
    projector = whitener(statistics, "samples")
    within = within_class_scatter(statistics) / statistics.counts.sum()
    across = within @ projector
    others = across - projector @ (factor @ across)
    # (I - V V^T) Sigma_W (I - V V^T), the directions V of Sigma_B taken out on both sides.
    half = within - projector @ (factor @ within)
    rest = half - (half @ projector) @ factor
    rounding = torch.finfo(rest.dtype).eps * len(rest) * within.diagonal().sum().detach() + single.square()
    predicted = others.T @ torch.linalg.pinv((rest + rest.T) / 2, atol=rounding, rtol=0.0, hermitian=True) @ others
    remaining = projector.T @ across - predicted
    identity = torch.eye(len(remaining), dtype=remaining.dtype, device=remaining.device)
    unexplained: Tensor = torch.linalg.solve(identity + remaining, remaining).diagonal().sum().clamp(min=0)
    return unexplained


def _h_score_compute(statistics: ClassStatistics) -> Tensor:
    return _rank_between(statistics) - _unexplained(statistics)


def h_score(features: Tensor, target: Tensor, num_classes: int | None = None) -> Tensor:
    """H-score, ``tr(Sigma_T^+ Sigma_B)`` with ``Sigma_T = Sigma_W + Sigma_B``, in ``[0, rank Sigma_B]``.

    ``Sigma_B`` weighs class means by ``n_k / N`` (``between="samples"`` of :func:`nc1`), so that ``Sigma_T`` is the
    covariance of all features. The H-score is at most K - 1, and reaches the rank of ``Sigma_B`` when the features have
    collapsed. Singular directions of ``Sigma_T`` are left out rather than inverted, which is what lets other code print
    more than the maximum.

    Args:
        features: Shape ``(N, D)`` with D up to 8,192, floating point.
        target: Shape ``(N,)``, integers in ``[0, K)``.
        num_classes: K; ``None`` takes the largest label plus one.

    Returns:
        Scalar float64 tensor; ``nan``, with a warning, where it is undefined.

    Source:
        Bao et al. 2019, An information-theoretic approach to transferability in task transfer learning,
        10.1109/ICIP.2019.8803726.

    Example:
        >>> import torch
        >>> features = torch.tensor([[2.0], [4.0], [-2.0], [-4.0]])
        >>> round(h_score(features, torch.tensor([0, 0, 1, 1])).item(), 4)  # 9 / (1 + 9)
        0.9
    """
    statistics = class_statistics(features, target, num_classes)
    return _nan(statistics) if is_undefined(statistics, "H-score") else _h_score_compute(statistics)


def _vci_compute(statistics: ClassStatistics) -> Tensor:
    return _unexplained(statistics) / _rank_between(statistics)


def vci(features: Tensor, target: Tensor, num_classes: int | None = None) -> Tensor:
    """Variability collapse index, ``1 - tr(Sigma_T^+ Sigma_B) / rank Sigma_B``, in ``[0, 1]``; 0 when collapsed.

    ``Sigma_B`` weighs class means by ``n_k / N`` (``between="samples"`` of :func:`nc1`), so that
    ``Sigma_T = Sigma_W + Sigma_B`` is the covariance of all features. Unlike :func:`nc1` it does not change under any
    invertible linear map of the features.

    Args:
        features: Shape ``(N, D)`` with D up to 8,192, floating point.
        target: Shape ``(N,)``, integers in ``[0, K)``.
        num_classes: K; ``None`` takes the largest label plus one.

    Returns:
        Scalar float64 tensor; ``nan``, with a warning, where it is undefined.

    Source:
        Xu & Liu 2023, Quantifying the variability collapse of neural networks, arXiv:2306.03440.

    Example:
        >>> import torch
        >>> features = torch.tensor([[2.0], [4.0], [-2.0], [-4.0]])
        >>> round(vci(features, torch.tensor([0, 0, 1, 1])).item(), 4)
        0.1
    """
    statistics = class_statistics(features, target, num_classes)
    return _nan(statistics) if is_undefined(statistics, "VCI") else _vci_compute(statistics)
