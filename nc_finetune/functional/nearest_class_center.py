"""NC4: how often the classifier and the nearest-class-centre rule disagree."""

from __future__ import annotations

from torch import Tensor

from nc_finetune.functional.simplex_etf import check_class_means


def nearest_class_center(features: Tensor, means: Tensor) -> Tensor:
    """Assign every sample to the class whose mean is nearest.

    Args:
        features: Shape ``(N, D)``, floating point.
        means: Class means, shape ``(K, D)``, K at least 2.

    Returns:
        Classes, shape ``(N,)``, int64; the first where two are equally near.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import torch
        >>> nearest_class_center(torch.tensor([[0.9], [2.2]]), torch.tensor([[1.0], [2.0]])).tolist()
        [0, 1]
    """
    means = check_class_means(means)
    if features.ndim != 2 or features.shape[1] != means.shape[1]:
        raise ValueError(f"features must have shape (N, {means.shape[1]}), got {tuple(features.shape)}")
    # |h - m_k|^2 = |h|^2 - 2 h.m_k + |m_k|^2 cancels far from the origin, so start from the middle of the means.
    centre = means.mean(dim=0)
    centred = means - centre
    return (centred.square().sum(dim=1) - 2 * (features.to(means.dtype) - centre) @ centred.T).argmin(dim=1)


def ncc_accuracy(features: Tensor, target: Tensor, means: Tensor) -> Tensor:
    """Share of samples whose nearest class mean is that of their own class, in ``[0, 1]``; 1 when collapsed.

    Args:
        features: Shape ``(N, D)``, floating point.
        target: Shape ``(N,)``, integers in ``[0, K)``.
        means: Class means, shape ``(K, D)``, K at least 2: of these features, or of those of a training split.

    Returns:
        Scalar float64 tensor; ``nan`` for no samples.

    Raises:
        ValueError: If the shapes do not fit.

    Source:
        Ben-Shaul & Dekel 2022, Nearest class-center simplification through intermediate layers, arXiv:2201.08924.

    Example:
        >>> import torch
        >>> ncc_accuracy(torch.tensor([[0.9], [2.2]]), torch.tensor([0, 0]), torch.tensor([[1.0], [2.0]])).item()
        0.5
    """
    return (nearest_class_center(features, means) == target).double().mean()


def classifier_decisions(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Decide as a linear classifier does, ``argmax_k w_k.h + b_k``.

    Args:
        features: Shape ``(N, D)``, floating point.
        weight: Shape ``(K, D)``.
        bias: Shape ``(K,)``; ``None`` is zero.

    Returns:
        Classes, shape ``(N,)``, int64.

    Example:
        >>> import torch
        >>> classifier_decisions(torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [-1.0]])).tolist()
        [0, 1]
    """
    logits = features.double() @ weight.double().T
    return (logits if bias is None else logits + bias.double()).argmax(dim=1)


def nc4(features: Tensor, means: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Share of samples on which classifier and nearest-class-centre rule disagree, in ``[0, 1]``; 0 when collapsed.

    Args:
        features: Shape ``(N, D)``, floating point.
        means: Class means, shape ``(K, D)``, K at least 2.
        weight: Rows of the classifier, shape ``(K, D)``.
        bias: Its bias, shape ``(K,)``; ``None`` is zero.

    Returns:
        Scalar float64 tensor; ``nan`` for no samples.

    Raises:
        ValueError: If the shapes do not fit.

    Source:
        Papyan, Han & Donoho 2020, Prevalence of neural collapse, 10.1073/pnas.2015509117.

    Example:
        >>> import torch
        >>> nc4(torch.tensor([[0.9], [2.2]]), torch.tensor([[1.0], [2.0]]), torch.tensor([[-1.0], [-2.0]])).item()
        0.5
    """
    decided = classifier_decisions(features, weight, bias)
    return (nearest_class_center(features, means) != decided).double().mean()
