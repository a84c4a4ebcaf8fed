"""Where the blocks of anybody's network are, and how they lay out their outputs."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nc_finetune.backbones._layers.block_finder import (
    find_block_names,
    is_timm_network,
    parts_of_other_networks,
    timm_family,
)
from nc_finetune.backbones.pooling import LayerPooling, pool_features

# Modules of timm whose blocks give (N, H, W, D), or (N, windows, T, D), though their ``output_fmt`` does not say so.
CHANNELS_LAST_FAMILIES = ("nest", "swin_transformer_v2_cr", "vision_transformer_sam", "volo")
# Modules of timm whose class token comes in behind (most of) the blocks.
LATE_CLASS_TOKEN_FAMILIES = ("cait", "convit", "xcit")
# Modules of timm that mix (N, D, H, W) and (N, H, W, D): no one rule pools their blocks.
MIXED_FAMILIES = ("tiny_vit",)
# Ways in which timm's classifiers pool tokens where they leave out those in front.
_POOLINGS_OF_PATCHES = ("avg", "avgmax", "max")
_CLASS_TOKEN = re.compile(r"(cls|class)(_?(tokens?|embed|embedding))?")
_FURTHER_TOKEN = re.compile(r"(dist|distillation|reg|register|storage)_tokens?")


@dataclass(frozen=True)
class BlockLayout:
    """Where the blocks of a network are, and how they lay out their outputs; see :func:`find_layout`.

    Attributes:
        block_names: Residual or transformer blocks in the network, in order; may be empty.
        num_prefix_tokens: Class and register tokens in front of the patch tokens; 0 for convolution nets.
        maps_channels_last: Maps have shape ``(N, H, W, D)``; ``None`` where that differs from layer to layer.
        has_class_token: The first of the prefix tokens is the class token, and the classifier reads it; otherwise all
            of them are left out.
        tokens_first: Tokens have shape ``(T, N, D)``.
        tokens_from: The prefix tokens join before the blocks of the stage of this number; those of earlier ones see
            patch tokens alone, as in PVT and CvT.
    """

    block_names: tuple[str, ...] = ()
    num_prefix_tokens: int = 0
    maps_channels_last: bool | None = False
    has_class_token: bool = True
    tokens_first: bool = False
    tokens_from: int = 0

    def pool(self, output: Tensor, pooling: LayerPooling = "default", dtype: torch.dtype | None = None) -> Tensor:
        """Reduce an output to shape ``(N, D)``; see :func:`~nc_finetune.backbones.pool_features`.

        Example:
            >>> BlockLayout(num_prefix_tokens=1, tokens_first=True).pool(torch.ones(17, 2, 8)).shape
            torch.Size([2, 8])
        """
        return pool_features(
            output.transpose(0, 1) if self.tokens_first and output.ndim == 3 else output,
            self.num_prefix_tokens,
            bool(self.maps_channels_last),
            self.has_class_token,
            pooling=pooling,
            dtype=dtype,
        )

    def of_layer(self, name: str, layer: nn.Module, output: Tensor) -> BlockLayout:
        """Return the layout of one layer, which may come before the class token, or turn maps round.

        Args:
            name: Its name in the network.
            layer: The layer.
            output: What it gives.

        Raises:
            ValueError: If nobody can tell which dimension of a map is that of the channels.
        """
        if output.ndim == 3 and _first_number(name) < self.tokens_from:
            return replace(self, num_prefix_tokens=0, has_class_token=False)
        if output.ndim == 4 and self.maps_channels_last is None:
            return replace(self, maps_channels_last=_has_channels_last(layer, output))
        return self


def find_layout(model: nn.Module, root: nn.Module | None = None) -> BlockLayout:
    """Find the blocks of a network and say how they lay out their outputs.

    Args:
        model: The network. One of timm says so itself; of others the names of token parameters, the attention layers
            and, for torchvision's Swin, the class tell.
        root: The module that holds the network; it may hold the tokens, too.

    Returns:
        The layout of all its blocks.

    Raises:
        ValueError: If the blocks of the network mix two layouts.

    Example:
        >>> import timm
        >>> layout = find_layout(timm.create_model("test_vit"))
        >>> layout.block_names[-1], layout.num_prefix_tokens
        ('blocks.5', 1)
    """
    blocks = find_block_names(model)
    parts = list(model.modules())
    if (of_timm := next(filter(is_timm_network, parts), None)) is not None:
        return replace(_timm_layout(of_timm), block_names=blocks)
    tokens = _tokens(root or model, model)
    own_names = {name: name.rpartition(".")[2] for name in tokens}
    has_class_token = any(map(_CLASS_TOKEN.fullmatch, own_names.values()))
    further = (token for name, token in tokens.items() if _FURTHER_TOKEN.fullmatch(own_names[name]) and token.ndim > 1)
    is_swin = any(type(part).__module__ == "torchvision.models.swin_transformer" for part in parts)
    return BlockLayout(
        block_names=blocks,
        num_prefix_tokens=int(has_class_token) + sum(token.shape[-2] for token in further),
        maps_channels_last=True if is_swin else None,
        has_class_token=has_class_token,
        tokens_first=any(isinstance(part, nn.MultiheadAttention) and not part.batch_first for part in parts),
        tokens_from=max(map(_first_number, tokens), default=0),
    )


def _tokens(root: nn.Module, model: nn.Module) -> dict[str, nn.Parameter]:
    """Return class and other prefix tokens by name, also of modules around the network, though not of other networks.

    Names are those in the network; what is held around it has only its own, since it comes before all of the blocks.
    """
    elsewhere = {*model.modules(), *parts_of_other_networks(root, model)}
    around = {
        name: value
        for part in root.modules()
        if part not in elsewhere
        for name, value in part.named_parameters(recurse=False)
    }
    return {
        name: value
        for name, value in (around | dict(model.named_parameters())).items()
        if any(kind.fullmatch(name.rpartition(".")[2]) for kind in (_CLASS_TOKEN, _FURTHER_TOKEN))
    }


def _first_number(name: str) -> int:
    """Return the number of the stage or the block in the name of a layer; 0 if it has none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


def _timm_layout(model: nn.Module) -> BlockLayout:
    family = timm_family(model)
    if family in MIXED_FAMILIES:
        raise ValueError(f"the blocks of timm's {family} mix two layouts of maps; choose another backbone")
    has_class_token = getattr(model, "has_class_token", getattr(model, "cls_token", None) is not None)
    # Of a network that averages patch tokens, as EVA-02, nothing was ever read from the class token.
    reads_patches = getattr(model, "global_pool", "token") in _POOLINGS_OF_PATCHES
    return BlockLayout(
        num_prefix_tokens=0 if family in LATE_CLASS_TOKEN_FAMILIES else int(getattr(model, "num_prefix_tokens", 0)),
        maps_channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC" or family in CHANNELS_LAST_FAMILIES,
        has_class_token=bool(has_class_token) and not reads_patches,
    )


def _has_channels_last(module: nn.Module, output: Tensor) -> bool:
    """Tell whether a layer that is no part of timm or of a Swin gives ``(N, H, W, D)``, as of SAM's image encoder.

    With a convolution in the layer, channels come first; otherwise they are where the size is that of its norms.
    """
    parts = list(module.modules())
    if any(isinstance(part, nn.modules.conv._ConvNd) for part in parts):
        return False
    weights = (getattr(part, "weight", None) for part in parts)
    widths = {weight.numel() for weight in weights if isinstance(weight, Tensor) and weight.ndim == 1}
    first, last = output.shape[1] in widths, output.shape[-1] in widths
    if first and last:
        raise ValueError(
            f"channels may be the first or the last dimension of its map, {tuple(output.shape)}; choose another size of"
            " images, or name a layer with layers= that has no such map"
        )
    return last
