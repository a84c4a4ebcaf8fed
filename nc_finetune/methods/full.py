"""Full fine-tuning: everything."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from nc_finetune.backbones import Backbone
from nc_finetune.methods.base import FinetuningMethod


class FullFinetuning(FinetuningMethod):
    """Train the whole backbone and the head.

    Args:
        batch_norm: Mode of the BatchNorm layers; see :class:`~nc_finetune.methods.FinetuningMethod`.

    Example:
        >>> FullFinetuning().default_learning_rate
        0.0003
    """

    name: ClassVar[str] = "full_ft"
    label: ClassVar[str] = "full FT"
    default_learning_rate: ClassVar[float | None] = 3e-4

    def tuned_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return the whole network."""
        return [backbone.model]
