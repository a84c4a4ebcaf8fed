"""LP-FT: probe first, then fine-tune from the probe's head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from nc_finetune.backbones import Backbone
from nc_finetune.methods.base import FinetuningMethod


class ProbeFirst(FinetuningMethod):
    """Train the head alone for some epochs, then go on with another method from there (LP-FT).

    A random head sends large, useless gradients into the backbone; a fitted one does not. The optimizer is built once,
    over everything that is tuned in the end, so that a run resumes in either phase. While probing, what is tuned
    later builds no graph and gets no gradient; under DDP use the strategy ``ddp_find_unused_parameters_true``.

    Args:
        method: What comes after the probe.
        probe_epochs: Epochs of the probe, at least 1; the method gets what ``max_epochs`` leaves.

    Raises:
        ValueError: If ``probe_epochs`` is below 1.

    Source:
        Kumar et al. 2022, Fine-tuning can distort pretrained features and underperform out-of-distribution,
        arXiv:2202.10054.

    Example:
        >>> from nc_finetune.methods import FullFinetuning
        >>> method = ProbeFirst(FullFinetuning(), probe_epochs=5)
        >>> method.start_epoch(5)
        >>> method.probing
        False
    """

    name: ClassVar[str] = "lp_ft"
    label: ClassVar[str] = "LP-FT"

    def __init__(self, method: FinetuningMethod, probe_epochs: int = 5) -> None:
        super().__init__()
        if probe_epochs < 1:
            raise ValueError(f"probe_epochs must be at least 1, got {probe_epochs}; use {method.name} itself instead")
        self.method = method
        self.probe_epochs = probe_epochs
        self.probing = True
        self.key_layer = method.key_layer
        self.pooling = method.pooling

    @property
    def default_learning_rate(self) -> float | None:  # type: ignore[override]
        """The rate of the method that follows."""
        return self.method.default_learning_rate

    def set_key_layer(self, layer: str | list[str]) -> None:
        """Tune another block once the probe is over."""
        self.method.set_key_layer(layer)
        super().set_key_layer(layer)

    def start_epoch(self, epoch: int) -> None:
        """Leave the probe behind once its epochs are over."""
        self.probing = epoch < self.probe_epochs

    def tuned_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return what is trained in the end."""
        return self.method.tuned_modules(backbone)

    def tuned_parameters(self, backbone: Backbone) -> Iterable[nn.Parameter]:
        """Return what is trained in the end."""
        return self.method.tuned_parameters(backbone)

    def key_layers(self, backbone: Backbone) -> tuple[str, ...]:
        """Return the blocks that the method tunes."""
        return self.method.key_layers(backbone)

    def first_tuned_layer(self, backbone: Backbone) -> str | None:
        """Return that of the method that follows."""
        return self.method.first_tuned_layer(backbone)

    def skip_sources(self, backbone: Backbone) -> tuple[str, ...]:
        """Return the blocks that the method looks at."""
        return self.method.skip_sources(backbone)

    def input_sources(self, backbone: Backbone) -> tuple[str, ...]:
        """Return the blocks whose inputs the method looks at."""
        return self.method.input_sources(backbone)

    def key_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return what the method trains at the rate of its key layer."""
        return self.method.key_modules(backbone)

    def set_modes(self, backbone: Backbone) -> None:
        """Keep everything in eval mode while probing."""
        self.method.set_modes(backbone)
        if self.probing:
            for module in self.method.tuned_modules(backbone):
                module.eval()

    def features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Return the features of the method; without a graph while probing."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.probing):
            return self.method.features(backbone, images)
