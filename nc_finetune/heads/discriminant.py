"""A linear classifier that begins as the discriminant of what it sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nc_finetune.errors import check_name
from nc_finetune.functional.discriminant import Priors, checked_shrinkages
from nc_finetune.heads.base import ClassifierHead


class DiscriminantHead(ClassifierHead):
    """Linear classifier that is solved once, before training, and trained from there: ``logits = W h + b``.

    It starts where the linear discriminant of class means and shrunk within-class covariance ends, at the temperature
    of the best leave-one-out likelihood, so that the first gradients are of what the features lack and not of random
    weights. One pass over the training images before the first step gives all that, and
    :class:`~nc_finetune.ImageClassifier` sees to it. A head that has been solved stays as it is: when a fit is resumed
    or repeated, and when it comes from a delta. It must see what the model's method gives; behind a projection that is
    trained, as in :class:`BottleneckHead`, it is refused. It has ``K (D + 1)`` parameters.

    Under :class:`~nc_finetune.methods.LayerReadout` with a method training begins where the readout of the frozen
    network ends.

    Args:
        in_features: D.
        out_features: K.
        shrinkage: Of the covariance, in ``(0, 1]``, or several to choose from by leave-one-out; ``None`` chooses from
            1e-4 to 1.
        priors: Of the classes: ``"equal"``, or ``"counts"`` of the training images.

    Raises:
        ValueError: If a width is too small, a shrinkage out of range, or priors are another word.

    Attributes:
        weight: W, shape ``(K, D)``; until it is solved as of a new ``torch.nn.Linear``.
        bias: b, shape ``(K,)``.
        solved: Whether it has been solved; a buffer, so that checkpoints and deltas know.

    Source:
        Fisher 1936, 10.1111/j.1469-1809.1936.tb02137.x; to fine-tune from a fitted head: Kumar et al. 2022,
        arXiv:2202.10054.

    Example:
        >>> head = DiscriminantHead(4, 3, shrinkage=0.1)
        >>> head.awaits_solution
        True
        >>> head.take_(torch.eye(3, 4), torch.zeros(3))
        >>> head(torch.tensor([[2.0, 0.0, 1.0, 5.0]])).tolist(), head.awaits_solution
        ([[2.0, 0.0, 1.0]], False)
    """

    solved: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        shrinkage: float | Sequence[float] | None = None,
        priors: Priors = "equal",
    ) -> None:
        super().__init__(in_features, out_features)
        check_name("priors", priors, get_args(Priors))
        checked_shrinkages(shrinkage)
        self.shrinkage = shrinkage
        self.priors: Priors = priors
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.register_buffer("solved", torch.tensor(False))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights as ``torch.nn.Linear`` does, and wait to be solved again."""
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
        self.solved.fill_(False)

    @property
    def awaits_solution(self) -> bool:
        """Whether the head has still to be solved."""
        return not self.solved

    @torch.no_grad()
    def take_(self, weight: Tensor, bias: Tensor) -> None:
        """Write a solution into the parameters, which stay the same objects.

        Args:
            weight: Shape ``(K, D)``.
            bias: Shape ``(K,)``.

        Raises:
            ValueError: If a shape is another.
        """
        if weight.shape != self.weight.shape or bias.shape != self.bias.shape:
            raise ValueError(
                f"a solution must have weight {tuple(self.weight.shape)} and bias {tuple(self.bias.shape)}, got"
                f" {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.solved.fill_(True)

    def as_linear(self) -> nn.Linear:
        """Return a plain layer with the same parameters, for programs that know no other."""
        plain = nn.Linear(self.in_features, self.out_features, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain

    def logits(self, features: Tensor) -> Tensor:
        """Return the linear map of the features."""
        return F.linear(features, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Show the widths, and how it is solved."""
        return f"{super().extra_repr()}, shrinkage={self.shrinkage}, priors={self.priors!r}"
