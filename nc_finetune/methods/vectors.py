"""Tuning of the small vectors of a network: its biases, or the affine maps of its normalisations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nc_finetune.backbones import Backbone
from nc_finetune.methods.base import FinetuningMethod

_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class BiasTuning(FinetuningMethod):
    """Train every bias of the backbone and the head (BitFit); all of the backbone stays in eval mode.

    Source:
        Ben Zaken, Ravfogel & Goldberg 2022, BitFit, arXiv:2106.10199.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> BiasTuning().freeze(backbone := TimmBackbone("test_vit", weights=None))
        >>> {name.rpartition(".")[2] for name, p in backbone.named_parameters() if p.requires_grad}
        {'bias'}
    """

    name: ClassVar[str] = "bias_tuning"
    label: ClassVar[str] = "BitFit"
    default_learning_rate: ClassVar[float | None] = 3e-3

    def __init__(self) -> None:
        super().__init__()

    def tuned_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return nothing: no module is trained as a whole."""
        return []

    def tuned_parameters(self, backbone: Backbone) -> Iterable[nn.Parameter]:
        """Return every bias."""
        return [value for name, value in backbone.model.named_parameters() if name.rpartition(".")[2] == "bias"]


class NormTuning(BiasTuning):
    """Train scale and shift of every normalisation layer and the head; statistics of BatchNorm stay as they were.

    Source:
        Frankle, Schwab & Morcos 2021, Training BatchNorm and only BatchNorm, arXiv:2003.00152.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> NormTuning().freeze(backbone := TimmBackbone("test_resnet", weights=None))
        >>> sum(p.numel() for p in backbone.parameters() if p.requires_grad)
        2080
    """

    name: ClassVar[str] = "norm_tuning"
    label: ClassVar[str] = "norm tuning"

    def tuned_parameters(self, backbone: Backbone) -> Iterable[nn.Parameter]:
        """Return scale and shift of the normalisation layers."""
        norms = (part for part in backbone.model.modules() if isinstance(part, _NORMS))
        return [parameter for norm in norms for parameter in norm.parameters(recurse=False)]
