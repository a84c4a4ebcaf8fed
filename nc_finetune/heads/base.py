"""What heads share: widths, lengths and scales."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


def unit_length(features: Tensor) -> Tensor:
    """Scale vectors to length 1, and leave zero vectors at zero, with a gradient that stays finite.

    Args:
        features: Shape ``(..., D)``, floating point. Lengths are taken in float32 at least: squares of half precision
            overflow.

    Returns:
        The same shape and dtype.

    Example:
        >>> unit_length(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6..., 0.8...], [0.0, 0.0]]
    """
    exact = features.to(torch.promote_types(features.dtype, torch.float32))
    lengths = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    return (exact / torch.where(lengths > 0, lengths, 1)).to(features.dtype)


def logit_scale_for(num_classes: int, margin: float, probability: float = 0.999) -> float:
    """Scale of cosines at which the softmax can be as sure as wanted: ``log((K - 1) p / (1 - p)) / margin``.

    Cosines end at 1. Where the true class' cosine is above each other's by the margin, the softmax of the scaled
    cosines gives it the probability p. With a much smaller scale cross-entropy pulls at samples that are as good as
    they can be, with a much larger one it is content long before features have collapsed.

    Args:
        num_classes: K, at least 2.
        margin: Between cosines at the collapse: ``K/(K - 1)`` of a simplex ETF, 1 of an orthogonal frame.
        probability: p, in ``(1/K, 1)``.

    Returns:
        The scale, that is 1 over the temperature.

    Source:
        Wang et al. 2017, NormFace, arXiv:1704.06369, proposition 2.

    Example:
        >>> round(logit_scale_for(10, 10 / 9), 3)
        8.194
    """
    return math.log((num_classes - 1) * probability / (1 - probability)) / margin


def set_width_(linear: nn.Linear, in_features: int) -> None:
    """Let a linear layer see features of another width, with weights that are zero; whoever watches it still does.

    Args:
        linear: Changed.
        in_features: D.

    Example:
        >>> linear = nn.Linear(3, 2)
        >>> set_width_(linear, 5)
        >>> linear
        Linear(in_features=5, out_features=2, bias=True)
    """
    linear.in_features = in_features
    linear.weight = nn.Parameter(linear.weight.new_zeros(linear.out_features, in_features))


class ClassifierHead(nn.Module, ABC):
    """Base of the heads: from features ``(N, D)`` to logits ``(N, K)``.

    Like ``torch.nn.Linear`` heads have ``in_features`` and ``out_features``; one whose decision is linear in the
    feature has ``weight``, shape ``(K, D)``, and ``bias``, shape ``(K,)`` or ``None``, for NC3 and NC4.

    Args:
        in_features: D, at least 1.
        out_features: K, at least 2.

    Raises:
        ValueError: If a width is too small.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        if in_features < 1 or out_features < 2:
            raise ValueError(
                "a head needs in_features of at least 1 and out_features of at least 2 (classes),"
                f" got {in_features} and {out_features}"
            )
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, shape ``(N, K)``, of features, shape ``(N, D)``.

        Raises:
            ValueError: If the features have another width.
        """
        if features.shape[-1] != self.in_features:
            raise ValueError(
                f"features must have shape (N, {self.in_features}), got {tuple(features.shape)};"
                " the head was built for in_features of another width"
            )
        return self.logits(features)

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """Return logits of features whose width has been checked."""

    def extra_repr(self) -> str:
        """Show the widths."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def check_positive(name: str, value: float | None) -> None:
    """Refuse a scale or a temperature that is not a positive number; ``None`` stands for a default.

    Raises:
        ValueError: If it is none.
    """
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive, finite number, got {value}")
