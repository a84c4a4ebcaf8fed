"""NC3: how close classifier and class means are to each other."""

from __future__ import annotations

import torch
from torch import Tensor

from nc_finetune.functional.simplex_etf import check_class_means, frame_distance, is_undefined_frame
from nc_finetune.functional.undefined import nan_like, warn_undefined


def _check_weight(weight: Tensor, means: Tensor) -> Tensor:
    if weight.shape != means.shape:
        raise ValueError(
            f"the classifier's weight must have the shape of the class means, (K, D) = {tuple(means.shape)},"
            f" got {tuple(weight.shape)}"
        )
    return weight.to(means.dtype)


def _distance(weight: Tensor, means: Tensor, measure: str, *, simplex: bool) -> Tensor:
    """Compare ``W M^T`` with a frame, or say why it cannot be."""
    rows = check_class_means(means)
    weight = _check_weight(weight, rows)
    if is_undefined_frame(means, measure, centred=simplex):
        return nan_like(means)
    product = weight @ (rows - rows.mean(dim=0) if simplex else rows).T
    if not product.isfinite().all():
        warn_undefined(measure, "the classifier is not finite")
        return nan_like(means)
    rounding = torch.finfo(rows.dtype).eps * torch.linalg.matrix_norm(weight) * torch.linalg.matrix_norm(rows)
    if torch.linalg.matrix_norm(product) <= rounding:
        warn_undefined(measure, "the classifier is zero, or orthogonal to the class means")
        return nan_like(means)
    return frame_distance(product, simplex=simplex)


def nc3_etf_distance(weight: Tensor, means: Tensor) -> Tensor:
    """Distance of classifier and centred class means from one simplex ETF, in ``[0, 2]``; 0 when they are dual.

    ``| W M^T / |W M^T|_F - (I - 11^T/K) / sqrt(K - 1) |_F`` with rows ``m_k - m_G`` of M.

    Args:
        weight: Rows of the classifier, shape ``(K, D)``.
        means: Class means, shape ``(K, D)``, K at least 2.

    Returns:
        Scalar float64 tensor; ``nan``, with a warning, where all means coincide, the weight is zero, or a value is not
        finite.

    Raises:
        ValueError: If the shapes are others.

    Source:
        Zhu et al. 2021, A geometric analysis of neural collapse with unconstrained features, arXiv:2105.02375.

    Example:
        >>> round(nc3_etf_distance(5 * torch.eye(4), torch.eye(4)).item(), 12)
        0.0
    """
    return _distance(weight, means, "NC3 (ETF distance)", simplex=True)


def nc3_of_distance(weight: Tensor, means: Tensor) -> Tensor:
    """Distance of classifier and *uncentred* class means from one orthogonal frame, in ``[0, 2]``; 0 when dual.

    ``| W M^T / |W M^T|_F - I / sqrt(K) |_F`` with rows ``m_k`` of M: what the mean squared error without a bias
    collapses to.

    Args:
        weight: Rows of the classifier, shape ``(K, D)``.
        means: Class means, shape ``(K, D)``, K at least 2.

    Returns:
        Scalar float64 tensor; ``nan``, with a warning, where the means or the weight are zero, or a value is not
        finite.

    Raises:
        ValueError: If the shapes are others.

    Source:
        Tirer & Bruna 2022, Extended unconstrained features model for exploring deep neural collapse,
        arXiv:2202.08087.

    Example:
        >>> nc3_of_distance(5 * torch.eye(4), torch.eye(4)).item()
        0.0
    """
    return _distance(weight, means, "NC3 (OF distance)", simplex=False)
