"""Side fine-tuning: a tuned copy of one block, on a skip connection beside a frozen network."""

from __future__ import annotations

import copy
from typing import ClassVar

from torch import Tensor, nn

from nc_finetune.backbones import Backbone
from nc_finetune.methods._skips import SkipJoin, SkipPooling, SkipScale, features_with_skips
from nc_finetune.methods._with_skips import WithSkips
from nc_finetune.methods.base import BatchNormMode
from nc_finetune.methods.layer import LayerFinetuning


class SideFinetuning(WithSkips, LayerFinetuning):
    """Train a copy of one block, whose output goes straight to the classifier, and the head (side FT).

    As in SCL-FT the classifier sees the penultimate feature plus the pooled, zero-padded output of the tuned block. But
    the network goes on from its own block as it was, so that nothing in it changes: the copy sees what the block sees,
    and its output goes to the classifier alone. A step then costs what one block costs, no more, once
    :class:`~nc_finetune.callbacks.PrefixCache` keeps the block's input and the penultimate feature; no gradient passes
    through any other block. Inference costs one block more than that of the network.

    The copy belongs to the method, not to the backbone; it is made when the model is built, so that weights have to be
    there by then, and each model needs a method object of its own. Models of several tasks may share one backbone.

    Args:
        key_layer: Name of the block; a single one. See :class:`~nc_finetune.methods.LayerFinetuning`.
        scale: Factor of the skip; see :class:`~nc_finetune.methods.SkipConnections`.
        batch_norm: Mode of the copy's BatchNorm layers; see :class:`~nc_finetune.methods.FinetuningMethod`.
        join: Where the skip joins; see :class:`~nc_finetune.methods.SkipConnectionFinetuning`. The frozen final norm
            runs at every step with ``"before_norm"``.
        pooling: As there.

    Raises:
        ValueError: If several key layers are named, or ``scale``, ``join`` or ``pooling`` is another word.

    Source:
        The skip: Li et al. 2022, arXiv:2212.12206. Trained parts beside a frozen network: Zhang et al. 2020,
        Side-tuning, arXiv:1912.13503; Sung, Cho & Bansal 2022, LST: Ladder side-tuning, arXiv:2206.06522.

    Example:
        >>> import torch
        >>> from nc_finetune.backbones import TimmBackbone
        >>> backbone, method = TimmBackbone("test_vit", weights=None), SideFinetuning("blocks.3")
        >>> method.freeze(backbone)
        >>> method.features(backbone, torch.rand(2, 3, 160, 160)).shape
        torch.Size([2, 64])
        >>> any(p.requires_grad for p in backbone.parameters()), sum(p.numel() for p in method.parameters())
        (False, 41728)
    """

    name: ClassVar[str] = "side_ft"
    label: ClassVar[str] = "side FT"

    def __init__(
        self,
        key_layer: str | None = None,
        scale: SkipScale = 1.0,
        *,
        batch_norm: BatchNormMode = "eval",
        join: SkipJoin = "feature",
        pooling: SkipPooling = "default",
    ) -> None:
        if not isinstance(key_layer, (str, type(None))):
            raise ValueError(f"side FT copies one block, got key_layer={key_layer}; name a single one")
        super().__init__(key_layer, batch_norm)
        self.add_skips(1, scale, join, pooling)
        self.block: nn.Module | None = None
        self._origin: tuple[nn.Module, ...] = ()  # in a tuple: no part of the method

    def set_key_layer(self, layer: str | list[str]) -> None:
        """Copy another block; call :meth:`freeze` afterwards."""
        super().set_key_layer(layer)
        self.block = None

    def first_tuned_layer(self, backbone: Backbone) -> str | None:
        """Return where the skip joins: all of the network before it is frozen."""
        return self.joining_layer(backbone)

    def input_sources(self, backbone: Backbone) -> tuple[str, ...]:
        """Return the key layer, whose input the copy sees."""
        return self.key_layers(backbone)

    def tuned_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return the copy; made here, from the block as it is, when it is first asked for.

        Raises:
            ValueError: Also if the copy is of another network's block.
        """
        (block,) = super().tuned_modules(backbone)
        if self.block is None:
            self.block, self._origin = copy.deepcopy(block), (block,)
        if self._origin[0] is not block:
            raise ValueError("this method holds a copy of another network's block; make a new one for each model")
        return [self.block]

    def key_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return the copy."""
        return self.tuned_modules(backbone)

    def features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Return the penultimate feature plus the scaled, pooled and zero-padded output of the copy.

        Raises:
            ValueError: If the skip is wider than the penultimate feature, or the forward pass does not call the block.
        """
        bound = self.bind(backbone)
        beside = dict(zip(bound.key_layers, bound.tuned_modules, strict=True))
        return features_with_skips(
            backbone, tuple(beside), images, self.skips, join=self.join, pooling=self.pooling, beside=beside
        )
