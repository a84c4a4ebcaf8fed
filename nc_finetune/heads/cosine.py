"""A classifier on spheres: only directions count."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nc_finetune.heads.base import ClassifierHead, check_positive, logit_scale_for, unit_length


class CosineHead(ClassifierHead):
    """Linear classifier with features and rows of length 1: ``logit_k = cos(h, v_k) / temperature``.

    With cross-entropy its global minima are collapsed, and reached faster than without the spheres. It has ``K D``
    parameters, and one more with a learned temperature, ``temperature * exp(-log_gain)``: the gain is stored, so that
    weight decay pulls the temperature to where it started.

    Args:
        in_features: D.
        out_features: K.
        temperature: Positive; ``None`` takes the one at which a collapse on a simplex ETF gives the true class a
            probability of 0.999, see :func:`~nc_finetune.heads.logit_scale_for`.
        learn_temperature: Train the temperature, too.

    Raises:
        ValueError: If a width is too small or the temperature is not positive.

    Source:
        Yaras et al. 2022, Neural collapse with normalized features: a geometric analysis over the Riemannian manifold,
        arXiv:2209.09211.

    Example:
        >>> head = CosineHead(2, 2, temperature=0.5)
        >>> _ = head.direction.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 7.0]]))
        >>> head(torch.tensor([[5.0, 0.0]])).tolist()
        [[2.0, 0.0]]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        temperature: float | None = None,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__(in_features, out_features)
        check_positive("temperature", temperature)
        start = temperature or 1 / logit_scale_for(out_features, out_features / (out_features - 1))
        self.start_temperature: Tensor
        self.register_buffer("start_temperature", torch.tensor(start))
        self.direction = nn.Parameter(torch.empty(out_features, in_features))
        self.log_gain = nn.Parameter(torch.zeros(())) if learn_temperature else None
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw directions, uniform over the sphere, and put the temperature back to its start."""
        nn.init.normal_(self.direction, std=self.in_features**-0.5)
        if self.log_gain is not None:
            nn.init.zeros_(self.log_gain)

    @property
    def temperature(self) -> Tensor:
        """The temperature now, a scalar."""
        return self.start_temperature if self.log_gain is None else self.start_temperature * (-self.log_gain).exp()

    @property
    def weight(self) -> Tensor:
        """Rows of length ``1 / temperature``, shape ``(K, D)``."""
        return unit_length(self.direction) / self.temperature

    def logits(self, features: Tensor) -> Tensor:
        """Return the cosines over the temperature."""
        return F.linear(unit_length(features), self.weight)

    def extra_repr(self) -> str:
        """Show the widths and the temperature."""
        learned = ", learn_temperature=True" if self.log_gain is not None else ""
        return f"{super().extra_repr()}, temperature={self.temperature.item():.4g}{learned}"
