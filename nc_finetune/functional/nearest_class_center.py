"""NC4: how often the classifier and the nearest-class-centre rule disagree."""

from __future__ import annotations

from torch import Tensor

from nc_finetune.functional.class_statistics import as_labels, check_features
from nc_finetune.functional.simplex_etf import check_class_means
from nc_finetune.functional.undefined import nan_like, warn_undefined

NO_CLASS = -1
_NOT_FINITE = "features, class means or classifier are not finite"


def nearest_or_none(features: Tensor, means: Tensor) -> Tensor:
    """Do as :func:`nearest_class_center`, without a word and without a device-to-host copy.

    Args:
        features: Shape ``(N, D)``.
        means: Shape ``(K, D)``, float64.

    Returns:
        Classes, shape ``(N,)``, -1 where a distance is not finite.
    """
    # |h - m_k|^2 = |h|^2 - 2 h.m_k + |m_k|^2 cancels far from the origin, so start from the middle of the means.
    centre = means.mean(dim=0)
    centred = means - centre
    distances = centred.square().sum(dim=1) - 2 * (features.to(means.dtype) - centre) @ centred.T
    return distances.argmin(dim=1).where(distances.isfinite().all(dim=1), NO_CLASS)


def agreement(classes: Tensor, others: Tensor) -> Tensor:
    """Count where classes are the same; ``nan`` where one of them is none.

    Args:
        classes: Shape ``(N,)``.
        others: The same.

    Returns:
        Scalar float64 tensor.

    Example:
        >>> import torch
        >>> agreement(torch.tensor([0, 1]), torch.tensor([0, 0])).item()
        1.0
        >>> agreement(torch.tensor([0, -1]), torch.tensor([0, -1])).item()
        nan
    """
    same = (classes == others).double()
    return same.where((classes != NO_CLASS) & (others != NO_CLASS), float("nan")).sum()


def _share(measure: str, number: Tensor, of: int) -> Tensor:
    """Divide, or say why there is nothing to divide."""
    if not of:
        warn_undefined(measure, "there are no samples")
    elif number.isnan():
        warn_undefined(measure, _NOT_FINITE)
    return number / of if of else nan_like(number)


def _check(features: Tensor, means: Tensor) -> Tensor:
    """Return the class means in float64, or refuse what does not fit."""
    means = check_class_means(means)
    if features.ndim != 2 or features.shape[1] != means.shape[1]:
        raise ValueError(f"features must have shape (N, {means.shape[1]}), got {tuple(features.shape)}")
    return means


def nearest_class_center(features: Tensor, means: Tensor) -> Tensor:
    """Assign every sample to the class whose mean is nearest.

    Args:
        features: Shape ``(N, D)``, floating point.
        means: Class means, shape ``(K, D)``, K at least 2.

    Returns:
        Classes, shape ``(N,)``, int64; the first where two are equally near; -1, with a warning, where features or
        means are not finite.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import torch
        >>> nearest_class_center(torch.tensor([[0.9], [2.2]]), torch.tensor([[1.0], [2.0]])).tolist()
        [0, 1]
    """
    means = _check(features, means)
    nearest = nearest_or_none(features, means)
    if (nearest == NO_CLASS).any():
        warn_undefined("the nearest class mean", _NOT_FINITE)
    return nearest


def ncc_accuracy(features: Tensor, target: Tensor, means: Tensor) -> Tensor:
    """Share of samples whose nearest class mean is that of their own class, in ``[0, 1]``; 1 when collapsed.

    Args:
        features: Shape ``(N, D)``, floating point.
        target: Shape ``(N,)``, integers in ``[0, K)``.
        means: Class means, shape ``(K, D)``, K at least 2: of these features, or of those of a training split.

    Returns:
        Scalar float64 tensor; ``nan``, with a warning, for no samples and for values that are not finite.

    Raises:
        ValueError: If the shapes do not fit, or a label lies outside ``[0, K)``.

    Source:
        Ben-Shaul & Dekel 2022, Nearest class-center simplification through intermediate layers, arXiv:2201.08924.

    Example:
        >>> import torch
        >>> ncc_accuracy(torch.tensor([[0.9], [2.2]]), torch.tensor([0, 0]), torch.tensor([[1.0], [2.0]])).item()
        0.5
    """
    means = _check(features, means)
    check_features(features, target)
    nearest = nearest_or_none(features, means)
    return _share("NCC accuracy", agreement(nearest, as_labels(target, means[:, 0])), len(target))


def classifier_decisions(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Decide as a linear classifier does, ``argmax_k w_k.h + b_k``; makes no device-to-host copy.

    Args:
        features: Shape ``(N, D)``, floating point.
        weight: Shape ``(K, D)``.
        bias: Shape ``(K,)``; ``None`` is zero, minus infinity rules a class out.

    Returns:
        Classes, shape ``(N,)``, int64; -1 where features or logits are not finite.

    Example:
        >>> import torch
        >>> classifier_decisions(torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [-1.0]])).tolist()
        [0, 1]
    """
    logits = features.double() @ weight.double().T
    logits = logits if bias is None else logits + bias.double()
    defined = features.isfinite().all(dim=1) & (logits < float("inf")).all(dim=1)  # nan is not below it either
    return logits.argmax(dim=1).where(defined, NO_CLASS)


def nc4(features: Tensor, means: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Share of samples on which classifier and nearest-class-centre rule disagree, in ``[0, 1]``; 0 when collapsed.

    Args:
        features: Shape ``(N, D)``, floating point.
        means: Class means, shape ``(K, D)``, K at least 2.
        weight: Rows of the classifier, shape ``(K, D)``.
        bias: Its bias, shape ``(K,)``; ``None`` is zero.

    Returns:
        Scalar float64 tensor; ``nan``, with a warning, for no samples and for values that are not finite.

    Raises:
        ValueError: If the shapes do not fit.

    Source:
        Papyan, Han & Donoho 2020, Prevalence of neural collapse, 10.1073/pnas.2015509117.

    Example:
        >>> import torch
        >>> nc4(torch.tensor([[0.9], [2.2]]), torch.tensor([[1.0], [2.0]]), torch.tensor([[-1.0], [-2.0]])).item()
        0.5
    """
    means = _check(features, means)
    if weight.shape != means.shape or (bias is not None and bias.shape != weight.shape[:1]):
        given = (tuple(weight.shape), None if bias is None else tuple(bias.shape))
        raise ValueError(f"weight must have shape {tuple(means.shape)} and bias ({len(means)},), got {given}")
    decided = classifier_decisions(features, weight, bias)
    return _share("NC4", len(features) - agreement(nearest_or_none(features, means), decided), len(features))
