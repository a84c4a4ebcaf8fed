"""Layer fine-tuning: one key block."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from nc_finetune.backbones import Backbone
from nc_finetune.errors import check_name
from nc_finetune.methods.base import AUTO, BatchNormMode, FinetuningMethod


class LayerFinetuning(FinetuningMethod):
    """Train one block of the backbone, or a span of adjacent ones, and the head (Li et al. 2022, arXiv:2212.12206).

    No block below the key layer builds a graph; those above pass gradients on but receive none.

    Args:
        key_layer: Name of the block, e.g. ``"layer3.0"`` or ``"blocks.6"``, or a list of adjacent ones;
            ``backbone.block_names`` lists them. ``None`` is the middle block, ``layer3.0`` of a ResNet50; ``"auto"``
            is for :class:`nc_finetune.selection.ChooseKeyLayer` to choose before the fit.
        batch_norm: Mode of the block's BatchNorm layers; see :class:`~nc_finetune.methods.FinetuningMethod`.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> backbone = TimmBackbone("test_vit", weights=None)
        >>> LayerFinetuning("blocks.3").freeze(backbone)
        >>> sum(p.numel() for p in backbone.parameters() if p.requires_grad)
        41728
    """

    name: ClassVar[str] = "layer_ft"
    label: ClassVar[str] = "layer FT"
    default_learning_rate: ClassVar[float | None] = 3e-3

    def __init__(self, key_layer: str | list[str] | None = None, batch_norm: BatchNormMode = "eval") -> None:
        super().__init__(batch_norm)
        self.key_layer = key_layer

    def key_layers(self, backbone: Backbone) -> tuple[str, ...]:
        """Return the names of the tuned blocks, in the order of the forward pass.

        Raises:
            ValueError: If the blocks of a span are not adjacent.
        """
        chosen = backbone.middle_block if self.key_layer in (None, AUTO) else self.key_layer
        return named_blocks(backbone, chosen)

    def first_tuned_layer(self, backbone: Backbone) -> str | None:
        """Return the first key layer, which need not be a block."""
        return self.key_layers(backbone)[0]

    def tuned_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return the key blocks.

        Raises:
            ValueError: If the backbone has no layer of that name, or it has no parameters.
        """
        return [_get_block(backbone, layer) for layer in self.key_layers(backbone)]


def named_blocks(backbone: Backbone, key_layer: str | list[str]) -> tuple[str, ...]:
    """Return the names of a key layer, or of a span of adjacent ones, in the order of the forward pass.

    Raises:
        ValueError: If a span is empty, or its blocks are not adjacent.
    """
    return (key_layer,) if isinstance(key_layer, str) else _check_span(backbone, key_layer)


def _get_block(backbone: Backbone, layer: str) -> nn.Module:
    block = backbone.get_layer(layer)
    if not any(True for _ in block.parameters()):
        raise ValueError(
            f"key layer {layer!r} has no parameters to tune; choose one of {', '.join(backbone.block_names)}"
        )
    return block


def _check_span(backbone: Backbone, layers: list[str]) -> tuple[str, ...]:
    for layer in layers:
        check_name("block", layer, backbone.block_names)
    places = sorted({backbone.block_names.index(layer) for layer in layers})
    if not places or places[-1] - places[0] != len(places) - 1:
        raise ValueError(
            f"a span of key layers must be adjacent blocks, got {layers}; in order they are"
            f" {', '.join(backbone.block_names)}"
        )
    return tuple(backbone.block_names[place] for place in places)
