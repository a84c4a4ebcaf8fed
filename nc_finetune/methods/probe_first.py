"""LP-FT: probe first, then fine-tune from the probe's head."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from nc_finetune.backbones import Backbone
from nc_finetune.methods._wrapping import asks_inner
from nc_finetune.methods.base import FinetuningMethod


@asks_inner
class ProbeFirst(FinetuningMethod):
    """Train the head alone for some epochs, then go on with another method from there (LP-FT).

    A random head sends large, useless gradients into the backbone; a fitted one does not. The optimizer is built once,
    over everything that is tuned in the end, so that a run resumes in either phase, which the number of the epoch
    tells. While probing, what is tuned later builds no graph and gets no gradient; under DDP use the strategy
    ``ddp_find_unused_parameters_true``. Whatever else a method decides, its rates included, is decided by ``method``.

    Args:
        method: What comes after the probe.
        probe_epochs: Epochs of the probe, at least 1; the method gets what ``max_epochs`` leaves.

    Raises:
        ValueError: If ``probe_epochs`` is below 1, or the method trains nothing.

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
        super(FinetuningMethod, self).__init__()  # options, such as the mode of BatchNorm, are the method's
        if not method.trains:
            raise ValueError(f"LP-FT goes on with a method that trains, and {method.label} does not; use it by itself")
        if probe_epochs < 1:
            raise ValueError(f"probe_epochs must be at least 1, got {probe_epochs}; use {method.name} itself instead")
        self.method = method
        self.probe_epochs = probe_epochs
        self.probing = True

    def start_epoch(self, epoch: int) -> None:
        """Leave the probe behind once its epochs are over; from then on the epochs are the method's."""
        self.probing = epoch < self.probe_epochs
        self.method.start_epoch(max(epoch - self.probe_epochs, 0))

    def set_modes(self, backbone: Backbone) -> None:
        """Keep everything in eval mode while probing."""
        self.method.set_modes(backbone)
        if self.probing:
            backbone.eval()
            for module in self.bind(backbone).tuned_modules:
                module.eval()

    def features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Return the features of the method; without a graph while probing."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.probing):
            return self.method.features(backbone, images)
