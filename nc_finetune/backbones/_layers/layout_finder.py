"""How the blocks of anybody's network lay out their outputs."""

from __future__ import annotations

import re

from torch import Tensor, nn

from nc_finetune.backbones._layers.block_finder import find_block_names, is_timm_network, timm_family
from nc_finetune.backbones.pooling import BlockLayout

# Modules of timm whose blocks give (N, H, W, D), or (N, windows, T, D), though their ``output_fmt`` does not say so.
CHANNELS_LAST_FAMILIES = ("nest", "swin_transformer_v2_cr", "vision_transformer_sam", "volo")
# Modules of timm whose class token comes in behind (most of) the blocks.
LATE_CLASS_TOKEN_FAMILIES = ("cait", "convit", "xcit")
# Modules of timm that mix (N, D, H, W) and (N, H, W, D): no one rule pools their blocks.
MIXED_FAMILIES = ("tiny_vit",)
_CLASS_TOKEN = re.compile(r"(cls|class)(_?(tokens?|embed|embedding))?")
_FURTHER_TOKEN = re.compile(r"(dist|distillation|reg|register|storage)_tokens?")


def find_layout(model: nn.Module, root: nn.Module | None = None) -> BlockLayout:
    """Say how the blocks of a network lay out their outputs.

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
        >>> find_layout(timm.create_model("test_vit")).num_prefix_tokens
        1
    """
    for part in model.modules():
        if is_timm_network(part):
            return _timm_layout(part)
    parts = list(model.modules())
    tokens = _tokens(root or model, model)
    has_class_token = any(_CLASS_TOKEN.fullmatch(name.rpartition(".")[2]) for name in tokens)
    further = sum(
        token.shape[-2]
        for name, token in tokens.items()
        if _FURTHER_TOKEN.fullmatch(name.rpartition(".")[2]) and token.ndim > 1
    )
    return BlockLayout(
        num_prefix_tokens=int(has_class_token) + further,
        maps_channels_last=any(type(part).__module__ == "torchvision.models.swin_transformer" for part in parts),
        has_class_token=has_class_token,
        tokens_first=any(isinstance(part, nn.MultiheadAttention) and not part.batch_first for part in parts),
        tokens_from=max((first_number(name) for name in tokens), default=0),
    )


def _tokens(root: nn.Module, model: nn.Module) -> dict[str, nn.Parameter]:
    """Return class and other prefix tokens by name, also of modules around the network, though not of other networks.

    Names are those in the network; what is held around it has only its own, since it comes before all of the blocks.
    """
    inner, own = set(model.modules()), dict(model.named_parameters())
    others = {
        part
        for child in root.children()
        if not inner & set(child.modules()) and find_block_names(child)
        for part in child.modules()
    }
    around = {
        name: value
        for part in root.modules()
        if part not in inner and part not in others
        for name, value in part.named_parameters(recurse=False)
    }
    return {
        name: value
        for name, value in (around | own).items()
        if any(kind.fullmatch(name.rpartition(".")[2]) for kind in (_CLASS_TOKEN, _FURTHER_TOKEN))
    }


def first_number(name: str) -> int:
    """Return the number of the stage or the block in the name of a layer; 0 if it has none.

    Example:
        >>> first_number("encoder.stages.2.layers.0"), first_number("stem")
        (2, 0)
    """
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


def _timm_layout(model: nn.Module) -> BlockLayout:
    family = timm_family(model)
    if family in MIXED_FAMILIES:
        raise ValueError(f"the blocks of timm's {family} mix two layouts of maps; choose another backbone")
    has_class_token = getattr(model, "has_class_token", getattr(model, "cls_token", None) is not None)
    return BlockLayout(
        num_prefix_tokens=0 if family in LATE_CLASS_TOKEN_FAMILIES else int(getattr(model, "num_prefix_tokens", 0)),
        maps_channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC" or family in CHANNELS_LAST_FAMILIES,
        has_class_token=bool(has_class_token),
    )


def has_channels_last(module: nn.Module, output: Tensor) -> bool:
    """Tell whether a layer that is no part of timm or of a Swin gives ``(N, H, W, D)``, as of SAM's image encoder.

    Args:
        module: The layer.
        output: A map that it gives. With a convolution in the layer, channels come first; otherwise they are where
            the size is that of its norms.

    Raises:
        ValueError: If both fit.
    """
    parts = list(module.modules())
    if any(isinstance(part, nn.modules.conv._ConvNd) for part in parts):
        return False
    norms = [
        weight for part in parts if isinstance(weight := getattr(part, "weight", None), Tensor) and weight.ndim == 1
    ]
    widths = {weight.numel() for weight in norms}
    first, last = output.shape[1] in widths, output.shape[-1] in widths
    if first and last:
        raise ValueError(
            f"channels may be the first or the last dimension of its map, {tuple(output.shape)}; choose another size of"
            " images, or name a layer with layers= that has no such map"
        )
    return last
