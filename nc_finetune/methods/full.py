"""Full fine-tuning: everything."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from nc_finetune.backbones import Backbone
from nc_finetune.methods.base import BatchNormMode, FinetuningMethod
from nc_finetune.methods.layer import LayerFinetuning, named_blocks


class FullFinetuning(FinetuningMethod):
    """Train the whole backbone and the head.

    Args:
        batch_norm: Mode of the BatchNorm layers; see :class:`~nc_finetune.methods.FinetuningMethod`.
        key_layer: A block, or a span of adjacent ones, that learns at a rate of its own, ten times that of the rest
            unless told otherwise; ``None`` is one rate for all.

    Raises:
        ValueError: If the blocks of a span are not adjacent.

    Example:
        >>> FullFinetuning().default_learning_rate, FullFinetuning(key_layer="blocks.6").default_learning_rate
        (0.0003, 0.003)
    """

    name: ClassVar[str] = "full_ft"
    label: ClassVar[str] = "full FT"

    def __init__(self, batch_norm: BatchNormMode = "eval", key_layer: str | list[str] | None = None) -> None:
        super().__init__(batch_norm)
        self.key_layer = key_layer

    @property
    def default_learning_rate(self) -> float | None:  # type: ignore[override]
        """The rate of the key layer where there is one, otherwise that of everything."""
        return self.rest_learning_rate if self.key_layer is None else LayerFinetuning.default_learning_rate

    def key_layers(self, backbone: Backbone) -> tuple[str, ...]:
        """Return the blocks that have a rate of their own."""
        return () if self.key_layer is None else named_blocks(backbone, self.key_layer)

    def tuned_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return the whole network."""
        return [backbone.model]
