"""Linear probing: the classifier alone."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from nc_finetune.backbones import Backbone
from nc_finetune.methods.base import FinetuningMethod


class LinearProbe(FinetuningMethod):
    """Train the head on the frozen penultimate feature (Alain & Bengio 2016, arXiv:1610.01644).

    Example:
        >>> LinearProbe().name
        'linear_probe'
    """

    name: ClassVar[str] = "linear_probe"
    label: ClassVar[str] = "linear probe"

    def __init__(self) -> None:
        super().__init__()

    def tuned_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return nothing: the whole backbone is frozen."""
        return []
