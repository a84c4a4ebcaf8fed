"""The layers that can be measured in anybody's module: its blocks, what comes before, what its classifier sees."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nc_finetune.backbones._layers.block_finder import (
    CONTAINERS,
    find_block_names,
    is_plain_layer,
    named_layers,
    parts_of_other_networks,
)
from nc_finetune.backbones._layers.block_layout import BlockLayout, find_layout
from nc_finetune.backbones._layers.feature_hooks import watch_input, watch_outputs
from nc_finetune.backbones.base import PENULTIMATE, STEM, Backbone
from nc_finetune.backbones.pooling import LayerPooling, hidden_state
from nc_finetune.errors import unknown_name


@dataclass(frozen=True)
class NetworkLayers:
    """A module, the network in it, and where in that the layers are; see :func:`find_network_layers`.

    Attributes:
        root: The whole module.
        network: The part that holds the blocks; names of layers are relative to it.
        classifier: The module whose input is the penultimate feature; ``None`` if it was not found.
        layout: Where the blocks are in the network, and how they lay out their outputs.
    """

    root: nn.Module
    network: nn.Module
    classifier: nn.Module | None
    layout: BlockLayout

    @property
    def block_names(self) -> tuple[str, ...]:
        """Residual or transformer blocks in the network, in order; may be empty."""
        return self.layout.block_names

    @property
    def layer_names(self) -> tuple[str, ...]:
        """``"stem"`` (the input of the first block), every block, ``"penultimate"``: those that there are."""
        stem = (STEM,) if self.block_names else ()
        return (*stem, *self.block_names, *((PENULTIMATE,) if self.classifier is not None else ()))

    @property
    def submodule_names(self) -> tuple[str, ...]:
        """Every other name that :meth:`watch` knows: submodules of the network and of the whole module."""
        return tuple(self._submodules)

    @cached_property
    def _submodules(self) -> dict[str, nn.Module]:
        return {**named_layers(self.root), **named_layers(self.network)}

    def check_name(self, layer: str) -> str:
        """Return the name of a layer as it came.

        Raises:
            ValueError: If there is no such layer; the message has near matches, and the layers that are measured.
        """
        if layer in self.layer_names or layer in self.submodule_names:
            return layer
        inner = [name for name in self.submodule_names if name.endswith(f".{layer}")]
        near = (*inner[:3], *get_close_matches(layer, self.submodule_names, n=3))
        raise unknown_name("layer", layer, dict.fromkeys((*self.layer_names, *near)))

    def watch(self, layer: str, take: Callable[[str, object], None]) -> AbstractContextManager[None]:
        """Call ``take(layer, output)`` at every forward pass inside the ``with`` block, whatever the output is.

        Args:
            layer: One of :attr:`layer_names`, or another submodule of the network or of the whole module.
            take: What to do with the output, or with the input for ``"stem"`` and ``"penultimate"``.
        """
        if layer == STEM and self.block_names:
            return watch_input(self._submodules[self.block_names[0]], layer, take, check=False)
        if layer == PENULTIMATE and self.classifier is not None:
            return watch_input(self.classifier, layer, take, check=False)
        return watch_outputs(self._submodules[layer], [""], lambda _, output: take(layer, output), check=False)

    def pool(
        self, output: Any, pooling: LayerPooling = "default", dtype: torch.dtype | None = None, layer: str | None = None
    ) -> Tensor:
        """Reduce what a layer gave to shape ``(N, D)``; see :func:`~nc_finetune.backbones.pool_features`.

        Args:
            output: A tensor, or a tuple that begins with one; see :func:`~nc_finetune.backbones.hidden_state`.
            pooling: As of ``pool_features``.
            dtype: Dtype of the result.
            layer: Whose output it is. Blocks before the stage that brings the class token have none, and maps of
                attention blocks may have their channels last.

        Raises:
            TypeError: If the output is several tensors, or none.
            ValueError: If it has other dimensions, or nobody can tell which is that of the channels.
        """
        state = hidden_state(output)
        name = self.block_names[0] if layer == STEM and self.block_names else layer
        if name is None or name not in self._submodules:
            return self.layout.pool(state, pooling, dtype)
        return self.layout.of_layer(name, self._submodules[name], state).pool(state, pooling, dtype)


def find_network_layers(
    module: nn.Module, network: str | None = None, classifier: str | None = None, num_classes: int | None = None
) -> NetworkLayers:
    """Find the network in a module, its blocks and its classifier.

    The network is a :class:`~nc_finetune.backbones.Backbone`, or the one child of the module that holds blocks (see
    :func:`~nc_finetune.backbones.find_block_names`), or the module itself. The classifier is ``module.head`` beside
    a ``Backbone``, and otherwise the last ``nn.Linear`` outside the blocks, with ``num_classes`` rows where that is
    known; where each layer of weights is a block, the last one of these. What ``torch.compile`` wrapped is looked at
    itself.

    Args:
        module: Any module, such as a ``LightningModule``.
        network: Name of the submodule to look into, where the module has several.
        classifier: Name of the classifier, in the network or in the module, where it is another.
        num_classes: Number of rows of the classifier, where known.

    Returns:
        The layers. Nothing is missed where neither blocks nor a classifier are found: submodules have names.

    Raises:
        ValueError: If a name is unknown, or several children hold blocks and ``network`` says not which.

    Example:
        >>> import torchvision
        >>> module = nn.ModuleDict({"net": torchvision.models.resnet18(num_classes=3)})
        >>> layers = find_network_layers(module)
        >>> layers.layer_names[:3], layers.layer_names[-1], layers.classifier.out_features
        (('stem', 'layer1.0', 'layer1.1'), 'penultimate', 3)
    """
    backbones = [part for part in module.modules() if isinstance(part, Backbone)]
    head = None
    if len(backbones) == 1 and network is None:
        inner, layout = backbones[0].model, backbones[0].layout
        head = getattr(module, "head", None)
    else:
        inner = _submodule(module, module, network, "network") if network else _find_network(module)
        layout = find_layout(inner, module)
    if classifier is not None or not isinstance(head, nn.Module):
        head = _find_classifier(module, inner, layout.block_names, classifier, num_classes)
        layers = named_layers(inner)
        blocks = tuple(name for name in layout.block_names if layers[name] is not head)
        layout = replace(layout, block_names=blocks)
    return NetworkLayers(module, inner, head, layout)


def _submodule(module: nn.Module, network: nn.Module, name: str, kind: str) -> nn.Module:
    names = {**named_layers(module), **named_layers(network)}
    if name not in names:
        children = [child for child, _ in module.named_children()]
        raise unknown_name(kind, name, dict.fromkeys((*children, *get_close_matches(name, names, n=3))))
    return names[name]


def _find_network(module: nn.Module) -> nn.Module:
    layers = named_layers(module)
    blocks = find_block_names(module)
    if any("." not in block for block in blocks):
        return module  # its own children are the blocks
    heads = {block.partition(".")[0] for block in blocks}
    # A container at the top is a part of the network, not a network.
    networks = sorted(name for name in heads if not isinstance(layers[name], CONTAINERS))
    if not networks:
        return module
    if len(networks) > 1 or len(networks) < len(heads):
        raise ValueError(
            f"blocks were found in several parts of {type(module).__name__}: {', '.join(sorted(heads))}; say which to"
            f" look into, e.g. network={networks[0]!r}"
        )
    return layers[networks[0]]


def _find_classifier(
    module: nn.Module, network: nn.Module, blocks: tuple[str, ...], name: str | None, num_classes: int | None
) -> nn.Module | None:
    if name is not None:
        return _submodule(module, network, name, "classifier")
    layers = named_layers(network)
    inside = {part for block in blocks if not is_plain_layer(layers[block]) for part in layers[block].modules()}
    elsewhere = inside | parts_of_other_networks(module, network)
    linear = [part for part in module.modules() if isinstance(part, nn.Linear) and part not in elsewhere]
    rows = (1, 2) if num_classes == 2 else (num_classes,)  # one logit tells two classes apart
    fitting = [part for part in linear if num_classes is None or part.out_features in rows]
    if any(is_plain_layer(layers[block]) for block in blocks):  # a second such network looks like a head
        inner = set(network.modules())
        fitting = [part for part in fitting if part in inner] or fitting
    return _first_of_equals(module, fitting) if fitting else _convolution_as_classifier(network, num_classes)


def _first_of_equals(module: nn.Module, linear: list[nn.Linear]) -> nn.Module:
    """Return the last one, or the first that stands beside it and is its like: the others are distilled."""
    last = linear[-1]
    if last.in_features == last.out_features:
        return last
    holders = [part for part in module.modules() if not isinstance(part, CONTAINERS)]
    beside = next((part for part in holders if last in set(part.children())), last)
    shape = last.weight.shape
    return next((part for part in linear if part.weight.shape == shape and part in set(beside.children())), last)


def _convolution_as_classifier(network: nn.Module, num_classes: int | None) -> nn.Module | None:
    """Return the classifier where it is a convolution: the one that timm names, or the last with that many maps."""
    known = getattr(network, "get_classifier", None)
    if known is not None:
        return head if isinstance(head := known(), nn.Conv2d) else None
    last = next((part for part in reversed(list(network.modules())) if isinstance(part, nn.Conv2d)), None)
    return last if last is not None and last.out_channels == num_classes else None
