"""A narrow feature before the head: d = K."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from nc_finetune.heads.base import ClassifierHead
from nc_finetune.heads.discriminant import DiscriminantHead


class BottleneckHead(ClassifierHead):
    """Project features to d dimensions before any other head: ``logits = head(U h + b)``.

    Collapsed features span K - 1 dimensions, so d = K, or d = K - 1 with a simplex ETF, loses nothing at the collapse.
    It has ``d (D + 1)`` parameters (``d D`` without a bias) and those of the inner head. Before a fixed head it is the
    part that a linear probe trains.

    Args:
        in_features: D.
        out_features: K.
        width: d; ``None`` is K.
        head: Builds the inner head from d and K.
        bias: Give the projection a bias, which takes out the mean of all features; a head that looks at directions
            has no other means to.

    Raises:
        ValueError: If a width is too small, the inner head refuses its own, or it is one that has to be solved.

    Source:
        Zhu et al. 2021, A geometric analysis of neural collapse with unconstrained features, arXiv:2105.02375.

    Example:
        >>> from nc_finetune.heads import SimplexETFHead
        >>> head = BottleneckHead(512, 10, head=SimplexETFHead)
        >>> sum(parameter.numel() for parameter in head.parameters())  # 512 * 10 + 10
        5130
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int | None = None,
        head: Callable[[int, int], nn.Module] = nn.Linear,
        bias: bool = True,
    ) -> None:
        super().__init__(in_features, out_features)
        width = out_features if width is None else width
        if width < 1:
            raise ValueError(f"width of the bottleneck must be at least 1, got {width}; None takes out_features")
        self.projection = nn.Linear(in_features, width, bias=bias)
        self.head = head(width, out_features)
        if isinstance(self.head, DiscriminantHead):
            raise ValueError(
                "DiscriminantHead is solved from features that are there before training, and a bottleneck gives those"
                " of a random projection; give it to the model itself, or another head to the bottleneck"
            )

    @property
    def weight(self) -> Tensor:
        """Both layers as one, shape ``(K, D)``, where the inner head has a weight: the decision is linear in h."""
        inner: Tensor = self.head.weight  # type: ignore[assignment]
        return inner @ self.projection.weight

    @property
    def bias(self) -> Tensor | None:
        """The offset that goes with :attr:`weight`, shape ``(K,)``."""
        inner = getattr(self.head, "bias", None)
        if self.projection.bias is None:
            return inner
        moved: Tensor = self.head.weight @ self.projection.bias  # type: ignore[operator]
        return moved if inner is None else moved + inner

    def logits(self, features: Tensor) -> Tensor:
        """Return the inner head's logits of the projected features."""
        logits: Tensor = self.head(self.projection(features))
        return logits
