"""Skip-connection-layer fine-tuning: one key block, whose output also goes straight to the classifier."""

from __future__ import annotations

from typing import ClassVar

from nc_finetune.backbones import Backbone
from nc_finetune.methods._skips import SkipJoin, SkipPooling, SkipScale
from nc_finetune.methods._with_skips import WithSkips
from nc_finetune.methods.base import BatchNormMode
from nc_finetune.methods.layer import LayerFinetuning


class SkipConnectionFinetuning(WithSkips, LayerFinetuning):
    """Train one block and the head, with a skip connection from the block to the classifier (SCL-FT).

    The block's output goes on to the next block as before, and, pooled to a vector and zero-padded to the penultimate
    width, is added to the penultimate feature. Unless its scale is learned, the skip has no parameters: layer FT and
    SCL-FT train the same number.

    Args:
        key_layer: Name of the block, or a span; see :class:`~nc_finetune.methods.LayerFinetuning`.
        scale: Factor of the skip; 1 is the paper's, 0 is layer FT; ``"matched"`` or ``"learned"`` as in
            :class:`~nc_finetune.methods.SkipConnections`.
        batch_norm: Mode of the block's BatchNorm layers; see :class:`~nc_finetune.methods.FinetuningMethod`.
        skip_layers: Blocks whose outputs go to the classifier; ``None`` is the last of the key layers.
        join: Where the skip joins: ``"feature"``, the paper's, adds it to the penultimate feature, the others are for
            networks with a final layer norm: ``"normed_feature"`` takes the skip through it first, ``"before_norm"``
            adds the skip to what it sees (of a CLIP, before norm and projection).
        pooling: From a block's output to a vector: ``"default"``, the class token of a transformer that has one, and
            the mean over space otherwise; ``"average"``, the mean over space or patch tokens; or ``"class_token"``.

    Raises:
        ValueError: If ``scale``, ``join`` or ``pooling`` is another word.

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

    def __init__(
        self,
        key_layer: str | list[str] | None = None,
        scale: SkipScale = 1.0,
        *,
        batch_norm: BatchNormMode = "eval",
        skip_layers: list[str] | None = None,
        join: SkipJoin = "feature",
        pooling: SkipPooling = "default",
    ) -> None:
        super().__init__(key_layer, batch_norm)
        self.skip_layers = skip_layers
        self.add_skips(1 if skip_layers is None else len(skip_layers), scale, join, pooling)

    def skip_sources(self, backbone: Backbone) -> tuple[str, ...]:
        """Return the skip layers, or the last of the key layers."""
        return tuple(self.skip_layers or self.key_layers(backbone)[-1:])
