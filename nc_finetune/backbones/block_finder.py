"""Where the blocks of anybody's network are, and how they lay out their outputs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from nc_finetune.backbones.pooling import BlockLayout

# Modules of timm whose own grouping names no blocks, or too small ones: a dense layer gives its few new maps alone,
# and only a dense block gives what the next one sees.
FAMILY_BLOCKS = {
    "cait": r"blocks\.\d+",
    "densenet": r"features\.(denseblock|transition)\d+",
    "inception_v3": r"Mixed_\w+",
    "metaformer": r"stages\.\d+\.blocks\.\d+",
}
# Modules of timm whose blocks give (N, H, W, D), or (N, windows, T, D), though their ``output_fmt`` does not say so.
CHANNELS_LAST_FAMILIES = ("nest", "swin_transformer_v2_cr", "vision_transformer_sam", "volo")
# Modules of timm whose class token comes in behind (most of) the blocks.
LATE_CLASS_TOKEN_FAMILIES = ("cait", "convit", "xcit")
# Modules of timm that mix (N, D, H, W) and (N, H, W, D): no one rule pools their blocks.
MIXED_FAMILIES = ("tiny_vit",)

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_COMPILED = "_orig_mod"
# Between the stages of torchvision's Swin, neither residual nor transformer blocks.
_NO_BLOCKS = ("PatchMerging", "PatchMergingV2")
# Containers of torchvision's DenseNet that are blocks as a whole: their layers give their few new maps alone.
_WHOLE_BLOCKS = ("_DenseBlock", "_Transition")
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
_FURTHER_TOKENS = ("dist_token", "distillation_token", "reg_token", "register_tokens")


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` wrapped, or the module itself."""
    inner = getattr(module, _COMPILED, module)
    return inner if isinstance(inner, nn.Module) else module


def named_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return all submodules by name, with what ``torch.compile`` wrapped in the place of its wrapper.

    Args:
        module: Any module.

    Returns:
        As ``named_modules()`` without the module itself, in its order, and without ``_orig_mod`` in any name.

    Example:
        >>> import torch
        >>> list(named_layers(nn.ModuleDict({"net": torch.compile(nn.Sequential(nn.ReLU()))})))
        ['net', 'net.0']
    """
    layers: dict[str, nn.Module] = {}
    for path, layer in module.named_modules():
        name = ".".join(part for part in path.split(".") if part != _COMPILED)
        if name:
            layers[name] = layer  # a wrapped module comes behind its wrapper
    return layers


def find_block_names(model: nn.Module) -> tuple[str, ...]:
    """Name the residual or transformer blocks of a network.

    Networks of timm say themselves how their layers are grouped; a DenseNet's blocks are its dense blocks and the
    transitions between them. In others, such as those of torchvision and
    open_clip, a block is a member of an ``nn.Sequential``, ``nn.ModuleList`` or ``nn.ModuleDict`` that is no such
    container itself and has parameters in two or more of its parts; of nested ones, the outermost. Of a CLIP model,
    only the visual tower is looked at.

    Args:
        model: The network.

    Returns:
        Names in the order in which they were registered; empty if there are none.

    Example:
        >>> import timm, torchvision
        >>> find_block_names(timm.create_model("test_vit"))
        ('blocks.0', 'blocks.1', 'blocks.2', 'blocks.3', 'blocks.4', 'blocks.5')
        >>> find_block_names(torchvision.models.resnet18())[:3]
        ('layer1.0', 'layer1.1', 'layer2.0')
    """
    return tuple(_blocks(model))


def _blocks(module: nn.Module, prefix: str = "", inside: bool = False) -> Iterator[str]:
    if _is_timm_network(module):
        yield from (f"{prefix}{name}" for name in _timm_blocks(module))
        return
    for name, child in _image_children(module):
        container = isinstance(child, CONTAINERS) and type(child).__name__ not in _WHOLE_BLOCKS
        if inside and not container and _is_block(child):
            yield f"{prefix}{name}"
        else:
            yield from _blocks(child, f"{prefix}{name}.", container)


def _image_children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    is_clip = hasattr(module, "encode_image")
    for name, child in module.named_children():
        if not is_clip or name == "visual":
            yield name, uncompiled(child)


def _is_block(module: nn.Module) -> bool:
    parts = sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules())
    known_network = any(_is_timm_network(part) for part in module.modules())
    return parts > 1 and not known_network and type(module).__name__ not in _NO_BLOCKS


def _is_timm_network(module: nn.Module) -> bool:
    # MetaFormer groups no layers of its own.
    return hasattr(module, "group_matcher") or (
        hasattr(module, "forward_head") and _timm_family(module) in FAMILY_BLOCKS
    )


def _timm_blocks(model: nn.Module) -> list[str]:
    """Name the blocks of a timm network, by timm's own grouping of its layers."""
    patterns = _timm_patterns(model)
    return [
        name
        for name, layer in named_layers(model).items()
        if any(re.fullmatch(p, name) for p in patterns) and any(True for _ in layer.parameters())
    ]


def _timm_patterns(model: nn.Module) -> list[str]:
    if (family := _timm_family(model)) in FAMILY_BLOCKS:
        return [FAMILY_BLOCKS[family]]
    groups = model.group_matcher(coarse=False)  # type: ignore[operator]
    grouping = groups.get("blocks", ()) if isinstance(groups, dict) else ()
    # A pattern stands alone or beside its order; an explicit order marks what is no block, such as a final norm.
    return [grouping] if isinstance(grouping, str) else [item[0] for item in grouping if item[1] is None]


def _timm_family(model: nn.Module) -> str:
    return type(model).__module__.rpartition(".")[2]


def find_layout(model: nn.Module) -> BlockLayout:
    """Say how the blocks of a network lay out their outputs.

    Args:
        model: The network. One of timm says so itself; of others the names of token parameters, the attention layers
            and, for torchvision's Swin, the class tell.

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
        if _is_timm_network(part):
            return _timm_layout(part)
    parts = list(model.modules())
    tokens = {name: value for part in parts for name, value in part.named_parameters(recurse=False)}
    has_class_token = any(name in tokens for name in _CLASS_TOKENS)
    further = sum(tokens[name].shape[-2] for name in _FURTHER_TOKENS if name in tokens and tokens[name].ndim > 1)
    return BlockLayout(
        num_prefix_tokens=int(has_class_token) + further,
        maps_channels_last=any(type(part).__module__ == "torchvision.models.swin_transformer" for part in parts),
        has_class_token=has_class_token,
        tokens_first=any(isinstance(part, nn.MultiheadAttention) and not part.batch_first for part in parts),
    )


def _timm_layout(model: nn.Module) -> BlockLayout:
    family = _timm_family(model)
    if family in MIXED_FAMILIES:
        raise ValueError(f"the blocks of timm's {family} mix two layouts of maps; choose another backbone")
    has_class_token = getattr(model, "has_class_token", getattr(model, "cls_token", None) is not None)
    return BlockLayout(
        num_prefix_tokens=0 if family in LATE_CLASS_TOKEN_FAMILIES else int(getattr(model, "num_prefix_tokens", 0)),
        maps_channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC" or family in CHANNELS_LAST_FAMILIES,
        has_class_token=bool(has_class_token),
    )
