"""NC3: how close classifier and class means are to each other."""

from __future__ import annotations

from torch import Tensor

from nc_finetune.functional.simplex_etf import check_class_means, frame_distance


def _check_weight(weight: Tensor, means: Tensor) -> Tensor:
    if weight.shape != means.shape:
        raise ValueError(
            f"the classifier's weight must have the shape of the class means, (K, D) = {tuple(means.shape)},"
            f" got {tuple(weight.shape)}"
        )
    return weight.to(means.dtype)


def nc3_etf_distance(weight: Tensor, means: Tensor) -> Tensor:
    """Distance of classifier and centred class means from one simplex ETF, in ``[0, 2]``; 0 when they are dual.

    ``| W M^T / |W M^T|_F - (I - 11^T/K) / sqrt(K - 1) |_F`` with rows ``m_k - m_G`` of M.

    Args:
        weight: Rows of the classifier, shape ``(K, D)``.
        means: Class means, shape ``(K, D)``, K at least 2.

    Returns:
        Scalar float64 tensor; ``nan`` where all means coincide or the weight is zero.

    Raises:
        ValueError: If the shapes are others.

    Source:
        Zhu et al. 2021, A geometric analysis of neural collapse with unconstrained features, arXiv:2105.02375.

    Example:
        >>> import torch
        >>> round(nc3_etf_distance(5 * torch.eye(4), torch.eye(4)).item(), 12)
        0.0
    """
    means = check_class_means(means)
    return frame_distance(_check_weight(weight, means) @ (means - means.mean(dim=0)).T, simplex=True)


def nc3_of_distance(weight: Tensor, means: Tensor) -> Tensor:
    """Distance of classifier and *uncentred* class means from one orthogonal frame, in ``[0, 2]``; 0 when dual.

    ``| W M^T / |W M^T|_F - I / sqrt(K) |_F`` with rows ``m_k`` of M: what the mean squared error without a bias
    collapses to.

    Args:
        weight: Rows of the classifier, shape ``(K, D)``.
        means: Class means, shape ``(K, D)``, K at least 2.

    Returns:
        Scalar float64 tensor; ``nan`` where the means or the weight are zero.

    Raises:
        ValueError: If the shapes are others.

    Source:
        Tirer & Bruna 2022, Extended unconstrained features model for exploring deep neural collapse,
        arXiv:2202.08087.

    Example:
        >>> import torch
        >>> nc3_of_distance(5 * torch.eye(4), torch.eye(4)).item()
        0.0
    """
    means = check_class_means(means)
    return frame_distance(_check_weight(weight, means) @ means.T, simplex=False)
