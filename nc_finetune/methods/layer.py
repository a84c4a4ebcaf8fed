"""Layer fine-tuning: one key block."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from nc_finetune.backbones import Backbone
from nc_finetune.methods.base import BatchNormMode, FinetuningMethod


class LayerFinetuning(FinetuningMethod):
    """Train one block of the backbone and the head (Li et al. 2022, arXiv:2212.12206).

    No block below the key layer builds a graph; those above pass gradients on but receive none.

    Args:
        key_layer: Name of the block, e.g. ``"layer3.0"`` or ``"blocks.6"``; ``backbone.block_names`` lists them.
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

    def __init__(self, key_layer: str, batch_norm: BatchNormMode = "eval") -> None:
        super().__init__(batch_norm)
        self.key_layer: str = key_layer

    def tuned_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return the key block.

        Raises:
            ValueError: If the backbone has no layer of that name, or it has no parameters.
        """
        block = backbone.get_layer(self.key_layer)
        if not any(True for _ in block.parameters()):
            raise ValueError(
                f"key layer {self.key_layer!r} has no parameters to tune;"
                f" choose one of {', '.join(backbone.block_names)}"
            )
        return [block]
