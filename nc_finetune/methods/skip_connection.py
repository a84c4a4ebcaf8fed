"""Skip-connection-layer fine-tuning: one key block, whose output also goes straight to the classifier."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from nc_finetune.backbones import Backbone, watch_outputs
from nc_finetune.methods.base import BatchNormMode
from nc_finetune.methods.layer import LayerFinetuning


class SkipConnectionFinetuning(LayerFinetuning):
    """Train one block and the head, with a skip connection from the block to the classifier (SCL-FT).

    The block's output goes on to the next block as before, and, pooled to a vector and zero-padded to the penultimate
    width, is added to the penultimate feature. The skip has no parameters: layer FT and SCL-FT train the same number.

    Args:
        key_layer: Name of the block; see :class:`~nc_finetune.methods.LayerFinetuning`.
        scale: Factor of the skip; 1 is the paper's, 0 is layer FT.
        batch_norm: Mode of the block's BatchNorm layers; see :class:`~nc_finetune.methods.FinetuningMethod`.

    Source:
        Li et al. 2022, Principled and efficient transfer learning of deep models via neural collapse,
        arXiv:2212.12206.

    Example:
        >>> import torch
        >>> from nc_finetune.backbones import TimmBackbone
        >>> backbone = TimmBackbone("test_vit", weights=None)
        >>> SkipConnectionFinetuning("blocks.3").features(backbone, torch.rand(2, 3, 160, 160)).shape
        torch.Size([2, 64])
    """

    name: ClassVar[str] = "scl_ft"
    label: ClassVar[str] = "SCL-FT"

    def __init__(self, key_layer: str, scale: float = 1.0, batch_norm: BatchNormMode = "eval") -> None:
        super().__init__(key_layer, batch_norm)
        self.scale = scale

    def features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Return the penultimate feature plus the scaled, pooled and zero-padded output of the key block.

        Raises:
            ValueError: If the block is wider than the penultimate feature, or the forward pass does not call it.
        """
        skips: dict[str, Tensor] = {}

        # Pooled at once: a later layer may write into the output in place.
        def take(layer: str, output: Tensor) -> None:
            skips[layer] = backbone.pool(output)

        with watch_outputs(backbone.model, [self.key_layer], take):
            penultimate = super().features(backbone, images)
        if self.key_layer not in skips:
            raise ValueError(
                f"the forward pass of {backbone.name!r} does not call {self.key_layer!r} itself;"
                f" choose one of {', '.join(backbone.block_names)}"
            )
        skip = skips[self.key_layer]
        padding = backbone.num_features - skip.shape[1]
        if padding < 0:
            raise ValueError(
                f"the skip from {self.key_layer!r} is {skip.shape[1]} wide, the penultimate feature of"
                f" {backbone.name!r} only {backbone.num_features}; choose a narrower block"
            )
        return penultimate + self.scale * F.pad(skip, (0, padding))
