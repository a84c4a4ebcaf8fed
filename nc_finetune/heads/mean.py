"""Two heads as one: the mean of their logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nc_finetune.heads.base import ClassifierHead


class MeanHead(ClassifierHead):
    """Mean of two heads: ``logits = s_1 f_1(h_1) + s_2 f_2(h_2)``.

    With a half over its temperature as the scale of each, the logits are the mean of both heads' log-probabilities, but
    for a number that all classes share. :class:`~nc_finetune.callbacks.SolveHead` joins a trained head and a solved one
    so. It has the parameters of both heads; the scales are not trained.

    Args:
        in_features: D.
        out_features: K.
        first: Builds one head from the width of what it sees and K.
        second: Builds the other one.
        widths: How many of the features each of them sees, the first the ones in front, the second those behind;
            ``None`` lets both see all.

    Raises:
        ValueError: If a width is too small, the two are not D together, or a head refuses its own.

    Attributes:
        scales: Shape ``(2,)``, a half each at first.

    Source:
        Averaging log-probabilities: Hinton 2002, Training products of experts, 10.1162/089976602760128018.

    Example:
        >>> from nc_finetune.heads import CosineHead
        >>> head = MeanHead(6, 3, second=CosineHead, widths=(4, 2))
        >>> first, second = head.parts(torch.randn(5, 6))
        >>> torch.allclose(head(torch.zeros(1, 6)), head.first.bias / 2)
        True
    """

    scales: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        first: Callable[[int, int], nn.Module] = nn.Linear,
        second: Callable[[int, int], nn.Module] = nn.Linear,
        widths: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        if widths is not None and sum(widths) != in_features:
            raise ValueError(f"widths of the heads must be in_features={in_features} together, got {tuple(widths)}")
        self.widths = None if widths is None else (widths[0], widths[1])
        seen = self.widths or (in_features, in_features)
        self.first = first(seen[0], out_features)
        self.second = second(seen[1], out_features)
        self.register_buffer("scales", torch.full((2,), 0.5))

    def parts(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of each head, shapes ``(N, K)``, of features, shape ``(N, D)``."""
        seen = (features, features) if self.widths is None else torch.split(features, [*self.widths], dim=-1)
        return self.first(seen[0]), self.second(seen[1])

    def logits(self, features: Tensor) -> Tensor:
        """Return the scaled sum."""
        first, second = self.parts(features)
        scales = self.scales.to(first)
        return scales[0] * first + scales[1] * second
