"""Skip connections from blocks of the backbone to the classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nc_finetune.backbones import Backbone, watch_outputs

SkipScale = float | Literal["matched", "learned"]


class SkipConnections(nn.Module):
    """Add pooled, zero-padded outputs of blocks to the penultimate feature, each times its scale.

    Args:
        number: How many skips there are, at least 1.
        scale: A factor of all of them (1 is the paper's); ``"matched"`` brings each skip to the root mean square of
            the penultimate feature, measured once on the first training batch and kept in the state; ``"learned"``
            trains a factor a skip, starting from 1.

    Raises:
        ValueError: If the scale is another word.

    Example:
        >>> skips = SkipConnections(1, scale=0.5)
        >>> skips(torch.ones(1, 3), [torch.ones(1, 2)]).tolist()
        [[1.5, 1.5, 1.0]]
    """

    def __init__(self, number: int, scale: SkipScale = 1.0) -> None:
        super().__init__()
        if isinstance(scale, str) and scale not in ("matched", "learned"):
            raise ValueError(f"the scale of a skip must be a number, 'matched' or 'learned', got {scale!r}")
        self.scale = scale
        if scale == "learned":
            self.factors = nn.Parameter(torch.ones(number))
        elif scale == "matched":
            self.register_buffer("matched", torch.zeros(number))  # 0: not measured yet

    def forward(self, penultimate: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Return the sum, shape ``(N, num_features)``, of the penultimate feature and skips no wider than it."""
        width = penultimate.shape[1]
        for factor, skip in zip(self._factors(penultimate, skips), skips, strict=True):
            penultimate = penultimate + factor * F.pad(skip, (0, width - skip.shape[1]))
        return penultimate

    def _factors(self, penultimate: Tensor, skips: Sequence[Tensor]) -> Sequence[Tensor | float]:
        if self.scale == "learned":
            return self.factors.unbind()
        if self.scale == "matched":
            return self._matched_factors(penultimate.detach(), [skip.detach() for skip in skips])
        return [self.scale] * len(skips)

    def _matched_factors(self, penultimate: Tensor, skips: Sequence[Tensor]) -> Sequence[Tensor]:
        known = self.get_buffer("matched")
        squares = torch.stack([value.float().square().sum() / len(value) for value in (penultimate, *skips)])
        if self.training and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(squares)
        widths = torch.tensor([skip.shape[1] for skip in skips], device=squares.device)
        mean_squares = squares[1:] / widths
        measured = (squares[0] / penultimate.shape[1] / mean_squares.clamp(min=torch.finfo(squares.dtype).tiny)).sqrt()
        factors = torch.where(known > 0, known, measured)  # no branch: it would wait for the device
        if self.training:
            known.copy_(factors)
        return factors.unbind()


def features_with_outputs(
    backbone: Backbone, layers: Sequence[str], images: Tensor, features: Callable[[Backbone, Tensor], Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return the penultimate feature, and the pooled outputs of blocks, of one forward pass.

    Args:
        backbone: The network.
        layers: Names of blocks.
        images: Shape ``(N, 3, H, W)``.
        features: Runs the forward pass.

    Returns:
        Shape ``(N, num_features)``, and one tensor ``(N, D)`` a layer, in their order.

    Raises:
        ValueError: If a block is wider than the penultimate feature, or the forward pass does not call it.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> net = TimmBackbone("test_vit", weights=None)
        >>> penultimate, (skip,) = features_with_outputs(
        ...     net, ["blocks.3"], torch.rand(2, 3, 160, 160), lambda net, images: net(images)
        ... )
        >>> penultimate.shape, skip.shape
        (torch.Size([2, 64]), torch.Size([2, 64]))
    """
    pooled: dict[str, Tensor] = {}

    # Pooled at once: a later layer may write into the output in place.
    def take(layer: str, output: Tensor) -> None:
        pooled[layer] = backbone.pool(output)

    with watch_outputs(backbone.model, layers, take):
        penultimate = features(backbone, images)
    for layer in layers:
        _check_skip(backbone, layer, pooled.get(layer))
    return penultimate, [pooled[layer] for layer in layers]


def _check_skip(backbone: Backbone, layer: str, skip: Tensor | None) -> None:
    if skip is None:
        raise ValueError(
            f"the forward pass of {backbone.name!r} does not call {layer!r} itself;"
            f" choose one of {', '.join(backbone.block_names)}"
        )
    if skip.shape[1] > backbone.num_features:
        raise ValueError(
            f"the skip from {layer!r} is {skip.shape[1]} wide, the penultimate feature of"
            f" {backbone.name!r} only {backbone.num_features}; choose a narrower block"
        )
