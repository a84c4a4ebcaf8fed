"""Skip connections from blocks of the backbone to the classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from nc_finetune.backbones import (
    Backbone,
    norm_is_channels_last,
    norm_width,
    pool_features,
    run_beside,
    watch_outputs,
)

SkipScale = float | Literal["matched", "learned"]
SkipJoin = Literal["feature", "normed_feature", "before_norm"]
SkipPooling = Literal["default", "average", "class_token"]


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
        # Whether every factor is known: looked up once, since looking waits for the device, and ranks must agree.
        self._all_known = False
        self.register_load_state_dict_post_hook(_forget_what_is_known)  # type: ignore[no-untyped-call]

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
        if self._all_known:
            return known.unbind()
        squares = torch.stack([value.float().square().sum() / value.shape[0] for value in (penultimate, *skips)])
        if self.training and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(squares)
        widths = torch.tensor([skip.shape[1] for skip in skips], device=squares.device)
        mean_squares = squares[1:] / widths
        measured = (squares[0] / penultimate.shape[1] / mean_squares.clamp(min=torch.finfo(squares.dtype).tiny)).sqrt()
        factors = torch.where(known > 0, known, measured)
        if self.training:
            known.copy_(factors)
            self._all_known = bool((factors > 0).all())
        return factors.unbind()


def _forget_what_is_known(skips: SkipConnections, _incompatible: object) -> None:
    skips._all_known = False


def features_with_skips(
    backbone: Backbone,
    layers: Sequence[str],
    images: Tensor,
    skips: SkipConnections,
    *,
    join: SkipJoin = "feature",
    pooling: SkipPooling = "default",
    beside: Mapping[str, nn.Module] | None = None,
) -> Tensor:
    """Return the penultimate feature with the outputs of blocks added, in one forward pass.

    Args:
        backbone: The network.
        layers: Names of blocks.
        images: Shape ``(N, 3, H, W)``.
        skips: Adds them.
        join: ``"feature"`` adds the pooled outputs to the penultimate feature, ``"normed_feature"`` takes them through
            the backbone's final layer norm first, ``"before_norm"`` adds them to what that norm sees.
        pooling: From a block's output to a vector; maps are averaged over space whatever it is. ``"default"`` takes of
            tokens the class token if there is one, otherwise their mean; ``"average"`` takes the mean of the patch
            tokens; ``"class_token"`` refuses a network without one.
        beside: Modules by block; what they make of the block's input is added in place of the block's own output.

    Returns:
        Shape ``(N, num_features)``.

    Raises:
        ValueError: If a block is wider than the penultimate feature, the forward pass does not call it, or the
            backbone has no final layer norm or no class token though it is asked for.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> net = TimmBackbone("test_vit", weights=None)
        >>> features_with_skips(net, ["blocks.3"], torch.rand(2, 3, 160, 160), SkipConnections(1)).shape
        torch.Size([2, 64])
    """
    pooled: dict[str, Tensor] = {}
    width = backbone.num_features if join == "feature" else norm_width(backbone.final_norm)

    # Pooled at once: a later layer may write into the output in place.
    def take(layer: str, output: Tensor) -> None:
        pooled[layer] = backbone.pool(output, pooling)

    def outputs() -> list[Tensor]:
        for layer in layers:
            _check_skip(backbone, layer, pooled.get(layer), width)
        return [pooled[layer] for layer in layers]

    def add(_norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        run_those_beside()
        return _add_to_tokens(backbone, skips, inputs[0], outputs()), *inputs[1:]

    beside = beside or {}
    with ExitStack() as hooks:
        hooks.enter_context(watch_outputs(backbone.model, [layer for layer in layers if layer not in beside], take))
        run_those_beside = hooks.enter_context(run_beside(backbone.model, beside, take))
        if join == "before_norm":
            with backbone.final_norm.register_forward_pre_hook(add):
                features: Tensor = backbone(images)
            return features
        penultimate = backbone(images)
    found = outputs() if join == "feature" else [_norm(backbone, value) for value in outputs()]
    features = skips(penultimate, found)
    return features  # noqa: RET504 - for mypy: a module's call is untyped


def _add_to_tokens(backbone: Backbone, skips: SkipConnections, inputs: Tensor, outputs: list[Tensor]) -> Tensor:
    """Add skips to what the final norm sees: a vector a sample, or all tokens, of which each gets the same."""
    # Its layout is the norm's, which need not be that of the blocks.
    channels_last = norm_is_channels_last(backbone.final_norm)
    pooled = pool_features(inputs, channels_last=channels_last) if inputs.ndim == 4 else backbone.pool(inputs)
    added: Tensor = skips(pooled, outputs) - pooled
    if inputs.ndim == 4:
        return inputs + (added[:, None, None] if channels_last else added[..., None, None])
    return inputs + (added.unsqueeze(1) if inputs.ndim == 3 else added)


def _norm(backbone: Backbone, skip: Tensor) -> Tensor:
    """Take a skip through the final norm, one that looks at each sample by itself."""
    norm = backbone.final_norm
    if isinstance(norm, _NormBase) or not skip.shape[1] == norm_width(norm) == backbone.num_features:
        raise ValueError(
            f"a skip of width {skip.shape[1]} cannot go through the final norm of {backbone.name!r}, a"
            f" {type(norm).__name__} that is {norm_width(norm)} wide, to its feature, which is"
            f" {backbone.num_features}; use another join"
        )
    # Its forward alone: hooks, and blanks in its place, are for what the network sends through it.
    normed: Tensor = norm.forward(skip if norm_is_channels_last(norm) else skip[..., None, None]).flatten(1)
    return normed


def _check_skip(backbone: Backbone, layer: str, skip: Tensor | None, width: int) -> None:
    if skip is None:
        raise ValueError(
            f"the forward pass of {backbone.name!r} does not call {layer!r} itself;"
            f" choose one of {', '.join(backbone.block_names)}"
        )
    if skip.shape[1] > width:
        raise ValueError(
            f"the skip from {layer!r} is {skip.shape[1]} wide, the feature of {backbone.name!r} that it joins only"
            f" {width}; choose a narrower block"
        )
