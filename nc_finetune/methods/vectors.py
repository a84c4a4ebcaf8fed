"""Tuning of the small vectors of a network: its biases, or the affine maps of its normalisations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar

from torch import nn

from nc_finetune.backbones import Backbone, is_norm
from nc_finetune.methods.base import FinetuningMethod

# ``bias``; ``in_proj_bias`` of CLIP's attention, ``q_bias`` and ``v_bias`` of BEiT, SwinV2 and EVA02, ``mlp_bias``;
# ``bias_ih_l0`` of an LSTM. Not ``relative_position_bias_table``, nor ``attention_biases``.
_BIAS = re.compile(r"(.+_)?bias(_.+)?(?<!_table)")


def is_bias(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter is a bias: a vector that a layer adds to what it computes.

    Tables of positions are none, though they are added, too (to the scores of an attention): they have an entry for
    each pair of places. Nor are tokens that are appended to others, as ``bias_k`` of ``nn.MultiheadAttention``, nor
    factors, as of a layer scale.

    Args:
        name: The parameter's own name in its module.
        parameter: The parameter.

    Example:
        >>> import torch
        >>> vector, table = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(169, 4))
        >>> [is_bias("q_bias", vector), is_bias("weight", vector), is_bias("relative_position_bias_table", table)]
        [True, False, False]
    """
    if name == "beta":  # of the affine layers that ResMLP has in place of norms: (1, 1, D)
        return sum(size > 1 for size in parameter.shape) <= 1
    return parameter.ndim == 1 and _BIAS.fullmatch(name) is not None


class BiasTuning(FinetuningMethod):
    """Train every bias of the backbone and the head (BitFit); all of the backbone stays in eval mode.

    A bias is a vector that a layer adds: of linear layers, convolutions, norms and activations, and those of queries,
    keys and values that the attention holds itself. Tables of relative positions are none.

    Raises:
        ValueError: When the model is built, if the backbone has none.

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
        """Return every bias.

        Raises:
            ValueError: If there is none.
        """
        named = backbone.model.named_parameters()
        found = [value for name, value in named if is_bias(name.rpartition(".")[2], value)]
        return _some(found, backbone, f"{self.label} trains biases", "NormTuning or another method")


class NormTuning(BiasTuning):
    """Train scale and shift of every normalisation layer and the head; statistics of BatchNorm stay as they were.

    A normalisation layer is one whatever library it comes from: LayerNorm, RMSNorm, GroupNorm and BatchNorm of torch,
    timm, open_clip or transformers, EvoNorm, FilterResponseNorm, GlobalResponseNorm.

    Raises:
        ValueError: When the model is built, if the backbone has none with parameters.

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
        """Return scale and shift of the normalisation layers.

        Raises:
            ValueError: If there are none.
        """
        norms = (part for part in backbone.model.modules() if is_norm(part))
        found = [parameter for norm in norms for parameter in norm.parameters(recurse=False)]
        return _some(found, backbone, f"{self.label} trains scale and shift of norms", "BiasTuning or another method")


def _some(found: list[nn.Parameter], backbone: Backbone, what: str, instead: str) -> list[nn.Parameter]:
    if not found:
        raise ValueError(f"{what}, and {backbone.name!r} has none; choose {instead}")
    return found
