"""Where the blocks of anybody's network are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

from torch import nn

# Modules of timm whose own grouping names no blocks, or too small ones: a dense layer gives its few new maps alone,
# and only a dense block gives what the next one sees.
FAMILY_BLOCKS = {
    "cait": r"blocks\.\d+",
    "densenet": r"features\.(denseblock|transition)\d+",
    "inception_v3": r"Mixed_\w+",
    "metaformer": r"stages\.\d+\.blocks\.\d+",
}
# By what a model that pairs images and texts is told, and its part that sees images: open_clip's, transformers'.
_VISUAL_TOWERS = {"encode_image": "visual", "get_image_features": "vision_model"}
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_COMPILED = "_orig_mod"
# Containers of torchvision's DenseNet that are blocks as a whole: their layers give their few new maps alone.
_WHOLE_BLOCKS = ("_DenseBlock", "_Transition")


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
    transitions between them. In others, such as those of torchvision, transformers and open_clip, a block is a member
    of an ``nn.Sequential``, ``nn.ModuleList`` or ``nn.ModuleDict`` that is no such container itself and has two or
    more layers of weights; of nested ones, the outermost that is no stage. A stage is a container of blocks, with at
    most one layer of weights beside them, such as a downsampling. Of a CLIP model, only the visual tower is looked at.

    Where there is no such block, nor a network of timm, the first of these is taken that there is: parts with two or
    more layers of weights of which the same module has several of one class, as in a GoogLeNet, other than classifiers;
    members with one layer of weights and a norm, as in a MobileNetV1; every linear and convolution layer, as in a VGG.

    Args:
        model: The network.

    Returns:
        Names in the order in which they were registered; empty if it has no layer of weights, or is one of timm
            without blocks.

    Example:
        >>> import timm, torchvision
        >>> find_block_names(timm.create_model("test_vit"))
        ('blocks.0', 'blocks.1', 'blocks.2', 'blocks.3', 'blocks.4', 'blocks.5')
        >>> find_block_names(torchvision.models.resnet18())[:3]
        ('layer1.0', 'layer1.1', 'layer2.0')
        >>> find_block_names(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)))
        ('0', '2')
    """
    if not (surely := tuple(_blocks(model, _is_block))):
        if holds_timm_network(model):
            return ()  # timm says that it has none
        tried = (_siblings(model, _rows_of_last(model)), _blocks(model, _is_layer), _plain_layers(model))
        return next(filter(None, map(tuple, tried)), ())
    layers = named_layers(model)
    kinds = {type(layers[name]) for name in surely}  # of one kind, some may have a single layer of weights
    return tuple(_blocks(model, lambda part: _is_block(part) or (type(part) in kinds and _is_layer(part))))


def parts_of_other_networks(root: nn.Module, network: nn.Module) -> set[nn.Module]:
    """Return all modules of those children of a module that hold blocks and have no part in common with a network."""
    inner = set(network.modules())
    others = (child for child in root.children() if not inner & set(child.modules()))
    return {part for child in others if _has_blocks(child) for part in child.modules()}


def _has_blocks(module: nn.Module) -> bool:
    """Tell whether a module has blocks, rather than layers of weights alone, as a head has."""
    return any(name for wanted in (_is_block, _is_layer) for name in _blocks(module, wanted))


def is_plain_layer(module: nn.Module) -> bool:
    """Tell whether a module is a linear or convolution layer that is run as such."""
    # The projection of an nn.MultiheadAttention is read by it, and never called.
    is_read = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and not is_read


def _blocks(
    module: nn.Module, wanted: Callable[[nn.Module], bool], prefix: str = "", inside: bool = False
) -> Iterator[str]:
    if is_timm_network(module):
        yield from (f"{prefix}{name}" for name in _timm_blocks(module))
        return
    for name, child in _image_children(module):
        container = _is_container(child)
        if inside and not container and wanted(child) and not _is_stage(child):
            yield f"{prefix}{name}"
        else:
            yield from _blocks(child, wanted, f"{prefix}{name}.", container)


def _siblings(module: nn.Module, rows: int | None, prefix: str = "") -> Iterator[str]:
    """Name parts of one class beside each other; of an ``nn.Sequential``, those inside rather than itself."""
    children = list(_image_children(module))
    able = {name for name, child in children if _can_be_block(child, rows)}
    kinds = Counter(type(child) for name, child in children if name in able)
    for name, child in children:
        is_one = name in able and kinds[type(child)] > 1
        inner = () if is_one and not _is_container(child) else tuple(_siblings(child, rows, f"{prefix}{name}."))
        yield from inner or ((f"{prefix}{name}",) if is_one else ())


def _can_be_block(module: nn.Module, rows: int | None) -> bool:
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)) or not _is_block(module):
        return False
    last = [part for part in module.modules() if is_plain_layer(part)][-1:]
    return not (last and isinstance(last[0], nn.Linear) and last[0].out_features == rows)  # or it is a classifier


def _rows_of_last(model: nn.Module) -> int | None:
    linear = [part for part in model.modules() if isinstance(part, nn.Linear)]
    return linear[-1].out_features if linear else None


def _plain_layers(module: nn.Module, prefix: str = "") -> Iterator[str]:
    for name, child in _image_children(module):
        if is_plain_layer(child):
            yield f"{prefix}{name}"
        else:
            yield from _plain_layers(child, f"{prefix}{name}.")


def _image_children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    tower = next((tower for sign, tower in _VISUAL_TOWERS.items() if hasattr(module, sign)), None)
    has_tower = tower is not None and isinstance(getattr(module, tower, None), nn.Module)
    for name, child in module.named_children():
        if not has_tower or name == tower:
            yield name, uncompiled(child)


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, CONTAINERS) and type(module).__name__ not in _WHOLE_BLOCKS


def _is_block(module: nn.Module) -> bool:
    several = _count_weights(module) > 1 or type(module).__name__ in _WHOLE_BLOCKS
    return several and not holds_timm_network(module)


def _is_layer(module: nn.Module) -> bool:
    parts = sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules())
    return parts > 1 and not holds_timm_network(module)


def _is_stage(module: nn.Module) -> bool:
    """Tell whether a module does no more than to run blocks, and to change the width or the resolution around them."""
    if type(module).__name__ in _WHOLE_BLOCKS:
        return False
    members = [member for child in module.children() if _is_container(child) for member in _members(child)]
    blocks = [member for member in members if _is_block(member)]
    return bool(blocks) and _count_weights(module) - sum(map(_count_weights, blocks)) <= 1


def _members(container: nn.Module) -> Iterator[nn.Module]:
    for child in map(uncompiled, container.children()):
        if _is_container(child):
            yield from _members(child)
        else:
            yield child


def _count_weights(module: nn.Module) -> int:
    """Count the parts with a matrix or a kernel: a norm, a scale, a token or a table of positions (1, T, D) is none."""
    return sum(any(map(_is_weight, part.parameters(recurse=False))) for part in module.modules())


def _is_weight(parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and parameter.shape[0] > 1 and parameter[0].numel() > 1


def holds_timm_network(module: nn.Module) -> bool:
    """Tell whether a module is a network of timm, which says itself what its layers give, or holds one."""
    return any(is_timm_network(part) for part in module.modules())


def is_timm_network(module: nn.Module) -> bool:
    """Tell whether a module is a network of timm."""
    # MetaFormer groups no layers of its own.
    return hasattr(module, "group_matcher") or (
        hasattr(module, "forward_head") and timm_family(module) in FAMILY_BLOCKS
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
    if (family := timm_family(model)) in FAMILY_BLOCKS:
        return [FAMILY_BLOCKS[family]]
    groups = model.group_matcher(coarse=False)  # type: ignore[operator]
    grouping = groups.get("blocks", ()) if isinstance(groups, dict) else ()
    # A pattern stands alone or beside its order; an explicit order marks what is no block, such as a final norm.
    return [grouping] if isinstance(grouping, str) else [item[0] for item in grouping if item[1] is None]


def timm_family(model: nn.Module) -> str:
    """Return the module of timm that defines a network, such as ``"cait"``."""
    return type(model).__module__.rpartition(".")[2]
