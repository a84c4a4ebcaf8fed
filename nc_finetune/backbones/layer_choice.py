"""Which layers are measured: names, patterns, or timm's rule for indices."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from nc_finetune.backbones.base import PENULTIMATE
from nc_finetune.backbones.network_layers import NetworkLayers
from nc_finetune.errors import unknown_name

LayerChoice = int | str | Sequence[int | str] | None


def choose_layers(network: NetworkLayers, layers: LayerChoice = None) -> tuple[str, ...]:
    """Resolve a choice of layers.

    Args:
        network: Where the layers are.
        layers: ``None`` for the stem, every block and the penultimate feature; an int n for the last n blocks; or a
            name or index, or several. Indices count the blocks, negative ones from the end, as in timm. A name with
            ``*`` or ``?`` is a pattern for the measured layers, or where none of these fits, for all submodules.

    Returns:
        Names: measured layers in the order of the network, then other submodules as they came. None twice.

    Raises:
        ValueError: If nothing is chosen, an index is out of range, a name is unknown or a pattern fits nothing, or
            blocks or classifier are asked for where they were not found.

    Example:
        >>> import timm
        >>> from nc_finetune.backbones import find_network_layers
        >>> network = find_network_layers(timm.create_model("test_resnet"))
        >>> choose_layers(network, 2), choose_layers(network, [0, "penult*"])
        (('layer3.0', 'layer4.0'), ('layer1.0', 'penultimate'))
    """
    if layers is None:
        _check_found(network)
        return network.layer_names
    wanted = range(-_last(network, layers), 0) if isinstance(layers, int) else layers
    items = [wanted] if isinstance(wanted, str) else wanted
    chosen = [name for item in items for name in _resolve(network, item)]
    if not chosen:
        raise ValueError("at least one layer must be chosen, got none; leave layers=None for all")
    known = [name for name in network.layer_names if name in chosen]
    return tuple(dict.fromkeys((*known, *chosen)))


def _check_found(network: NetworkLayers) -> None:
    kind = type(network.root).__name__
    if not network.block_names:
        children = ", ".join(name for name, _ in network.root.named_children()) or "none"
        raise ValueError(
            f"no blocks were found in {kind}, so layers=None has none to measure; pass layers="
            f" with names of submodules (its children: {children}), or with 'penultimate'"
        )
    _check_classifier(network)


def _last(network: NetworkLayers, number: int) -> int:
    if not 1 <= number <= len(network.block_names):
        raise ValueError(f"layers={number} asks for the last {number} of {len(network.block_names)} blocks")
    return number


def _resolve(network: NetworkLayers, item: int | str) -> tuple[str, ...]:
    if isinstance(item, int):
        count = len(network.block_names)
        if not -count <= item < count:
            raise ValueError(f"block index {item} is out of range: there are {count} blocks")
        return (network.block_names[item],)
    if any(sign in item for sign in "*?"):
        for names in (network.layer_names, network.submodule_names):
            if found := tuple(name for name in names if fnmatchcase(name, item)):
                return found
        raise unknown_name("pattern of layers", item, network.layer_names)
    if item == PENULTIMATE and item not in network.submodule_names:
        _check_classifier(network)
    return (network.check_name(item),)


def _check_classifier(network: NetworkLayers) -> None:
    if network.classifier is None:
        kind = type(network.root).__name__
        raise ValueError(f"the classifier of {kind} was not found; name it, e.g. input_of_classifier='fc'")
