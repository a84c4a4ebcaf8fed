"""NC2: how close the class means are to a simplex equiangular tight frame, or to an orthogonal frame."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nc_finetune.functional.undefined import named, nan_like, warn_undefined


def check_class_means(means: Tensor) -> Tensor:
    """Return class means in float64, or refuse what is none.

    Args:
        means: Should have shape ``(K, D)`` with K of at least 2.

    Returns:
        The means, float64.

    Raises:
        ValueError: If they have another shape.
    """
    if means.ndim != 2 or means.shape[0] < 2:
        raise ValueError(f"class means must have shape (K, D) with K of at least 2, got {tuple(means.shape)}")
    return means.double()


def simplex_gram(num_classes: int, like: Tensor) -> Tensor:
    """Return the Gram matrix of a simplex ETF of Frobenius norm 1, ``(I - 11^T/K) / sqrt(K - 1)``.

    Args:
        num_classes: K, at least 2.
        like: A tensor of the dtype and on the device that are wanted.

    Returns:
        Shape ``(K, K)``.

    Example:
        >>> simplex_gram(2, torch.ones(1)).tolist()
        [[0.5, -0.5], [-0.5, 0.5]]
    """
    identity = torch.eye(num_classes, dtype=like.dtype, device=like.device)
    return (identity - 1 / num_classes) / math.sqrt(num_classes - 1)


def frame_distance(product: Tensor, simplex: bool) -> Tensor:
    """Frobenius distance of a K x K product, scaled to norm 1, from that of a simplex or an orthogonal frame.

    Args:
        product: Inner products, shape ``(K, K)``.
        simplex: Compare with the simplex ETF, otherwise with ``I / sqrt(K)``.

    Returns:
        Scalar in ``[0, 2]``; ``nan`` where the product is zero.

    Example:
        >>> frame_distance(torch.eye(3), simplex=False).item()
        0.0
    """
    classes = product.shape[0]
    orthogonal = torch.eye(classes, dtype=product.dtype, device=product.device) / math.sqrt(classes)
    goal = simplex_gram(classes, product) if simplex else orthogonal
    distance: Tensor = torch.linalg.matrix_norm(product / torch.linalg.matrix_norm(product) - goal)
    return distance


def centred_means(means: Tensor) -> Tensor:
    """Return class means around their own mean, in float64.

    Args:
        means: Shape ``(K, D)``, K at least 2.

    Returns:
        The same shape.

    Raises:
        ValueError: If the shape is another.

    Example:
        >>> centred_means(torch.tensor([[1.0], [3.0]])).tolist()
        [[-1.0], [1.0]]
    """
    means = check_class_means(means)
    return means - means.mean(dim=0)


def _rounding(means: Tensor) -> Tensor:
    """Bound the length of what centring leaves of class means that are the same, in the precision that they came in."""
    precision = means.dtype if means.is_floating_point() else torch.float64
    lengths: Tensor = torch.linalg.vector_norm(means.detach().double(), dim=1)
    return torch.finfo(precision).eps * lengths.max()


def is_undefined_frame(means: Tensor, measure: str, *, centred: bool = True) -> bool:
    """Tell whether class means have no shape that could be compared with a frame; if so, warn once and say why.

    Args:
        means: Shape ``(K, D)``.
        measure: Its name in the warning.
        centred: Whether the measure is of the means around their own mean.

    Returns:
        Whether the caller must report ``nan``: means that are not finite, coincide, or, uncentred, are zero.
    """
    if not means.isfinite().all():
        reason = "the class means are not finite"
    elif centred and torch.linalg.vector_norm(centred_means(means), dim=1).max() <= _rounding(means):
        reason = "all class means coincide"
    elif not centred and not means.any():
        reason = "all class means are zero"
    else:
        return False
    warn_undefined(measure, reason)
    return True


def nc2_equinorm(means: Tensor) -> Tensor:
    """Coefficient of variation of the lengths of the centred class means, in ``[0, inf)``; 0 when they are equal.

    ``std / mean`` of ``|m_k - m_G|`` over the K classes (the standard deviation of a population: divided by K).

    Args:
        means: Class means, shape ``(K, D)``, K at least 2.

    Returns:
        Scalar float64 tensor; ``nan``, with a warning, where all means coincide or one is not finite.

    Raises:
        ValueError: If the shape is another.

    Source:
        Papyan, Han & Donoho 2020, Prevalence of neural collapse, 10.1073/pnas.2015509117.

    Example:
        >>> nc2_equinorm(torch.eye(4)).item()
        0.0
    """
    centred = centred_means(means)
    if is_undefined_frame(means, "NC2 (equinorm)"):
        return nan_like(means)
    lengths = torch.linalg.vector_norm(centred, dim=1)
    variation: Tensor = lengths.std(correction=0) / lengths.mean()
    return variation


def nc2_equiangle(means: Tensor) -> Tensor:
    """Mean distance of the cosines between centred class means from those of a simplex, in ``[0, 2]``; 0 at one.

    The mean over k != l of ``|cos(m_k - m_G, m_l - m_G) + 1/(K - 1)|``.

    Args:
        means: Class means, shape ``(K, D)``, K at least 2.

    Returns:
        Scalar float64 tensor; ``nan``, with a warning, where a class mean lies on the global mean and has no
        direction, or is not finite.

    Raises:
        ValueError: If the shape is another.

    Source:
        Papyan, Han & Donoho 2020, Prevalence of neural collapse, 10.1073/pnas.2015509117.

    Example:
        >>> round(nc2_equiangle(torch.eye(4)).item(), 12)
        0.0
    """
    centred = centred_means(means)
    if is_undefined_frame(means, "NC2 (equiangle)"):
        return nan_like(means)
    if (central := torch.linalg.vector_norm(centred, dim=1) <= _rounding(means)).any():
        warn_undefined("NC2 (equiangle)", f"the global mean is that of class {named(central)}, which has no direction")
        return nan_like(means)
    directions = centred / torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    first, second = torch.triu_indices(len(means), len(means), offset=1, device=means.device)
    cosines = (directions @ directions.T)[first, second]
    deviation: Tensor = (cosines + 1 / (len(means) - 1)).abs().mean()
    return deviation


def nc2_etf_distance(means: Tensor) -> Tensor:
    """Distance of the centred class means from a simplex ETF, in ``[0, 2]``; 0 at one.

    ``| M M^T / |M M^T|_F - (I - 11^T/K) / sqrt(K - 1) |_F`` with rows ``m_k - m_G`` of M.

    Args:
        means: Class means, shape ``(K, D)``, K at least 2.

    Returns:
        Scalar float64 tensor; ``nan``, with a warning, where all means coincide or one is not finite.

    Raises:
        ValueError: If the shape is another.

    Source:
        Zhu et al. 2021, A geometric analysis of neural collapse with unconstrained features, arXiv:2105.02375.

    Example:
        >>> round(nc2_etf_distance(torch.eye(4)).item(), 12)  # its corners around their centre are a simplex
        0.0
    """
    centred = centred_means(means)
    if is_undefined_frame(means, "NC2 (ETF distance)"):
        return nan_like(means)
    return frame_distance(centred @ centred.T, simplex=True)


def nc2_of_distance(means: Tensor) -> Tensor:
    """Distance of the *uncentred* class means from an orthogonal frame, in ``[0, 2]``; 0 at one.

    ``| M M^T / |M M^T|_F - I / sqrt(K) |_F`` with rows ``m_k`` of M: what the mean squared error without a bias
    collapses to.

    Args:
        means: Class means, shape ``(K, D)``, K at least 2.

    Returns:
        Scalar float64 tensor; ``nan``, with a warning, where all means are zero or one is not finite.

    Raises:
        ValueError: If the shape is another.

    Source:
        Tirer & Bruna 2022, Extended unconstrained features model for exploring deep neural collapse,
        arXiv:2202.08087.

    Example:
        >>> nc2_of_distance(torch.eye(4)).item()
        0.0
    """
    means = check_class_means(means)
    if is_undefined_frame(means, "NC2 (OF distance)", centred=False):
        return nan_like(means)
    return frame_distance(means @ means.T, simplex=False)


def effective_rank(means: Tensor) -> Tensor:
    """Effective rank of ``Sigma_B``, in ``[1, K - 1]``; K - 1 when all its directions weigh the same.

    The exponential of the entropy of its singular values, scaled to sum to 1.

    Args:
        means: Class means, shape ``(K, D)``, K at least 2.

    Returns:
        Scalar float64 tensor; ``nan``, with a warning, where all means coincide or one is not finite.

    Raises:
        ValueError: If the shape is another.

    Source:
        Roy & Vetterli 2007, The effective rank: a measure of effective dimensionality, EUSIPCO.

    Example:
        >>> round(effective_rank(torch.eye(4)).item(), 12)
        3.0
    """
    centred = centred_means(means)
    if is_undefined_frame(means, "effective rank"):
        return nan_like(means)
    values = torch.linalg.svdvals(centred).square()
    rank: Tensor = torch.special.entr(values / values.sum()).sum().exp()
    return rank
