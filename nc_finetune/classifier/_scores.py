"""Loss and metrics of a split, for each of its loaders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torchmetrics import Metric

from nc_finetune.metrics import WeightedMean, classification_metrics


class LoaderScores(nn.Module):
    """What is measured of a split: ``loss`` and the metrics by name, a set for each of its loaders.

    The loss is no number that is logged: Lightning's mean over processes rounds the number of images of each.

    Args:
        num_classes: K.
        multilabel: Labels have shape ``(N, K)``.
    """

    def __init__(self, num_classes: int, multilabel: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.multilabel = multilabel
        self.sets = nn.ModuleList([self._empty()])

    def begin(self, loaders: Any, device: torch.device) -> None:
        """Have empty scores for each loader, of this run: what inference mode has left cannot be added to outside."""
        number = len(CombinedLoader(loaders, "sequential").flattened)
        with torch.inference_mode(False):
            while len(self.sets) < number:
                self.sets.append(self._empty().to(device))
        for scores in self.sets:
            scores["loss"].reset()  # type: ignore[index]

    def _empty(self) -> nn.ModuleDict:
        return nn.ModuleDict({"loss": WeightedMean(), **classification_metrics(self.num_classes, self.multilabel)})

    def update(
        self, loader: int, loss: tuple[Tensor, Tensor], probabilities: Tensor, labels: Tensor
    ) -> Iterator[tuple[str, Metric, str]]:
        """Add a batch to the scores of its loader; yield the name of each, its metric, and where this is in here.

        Args:
            loader: The number of its loader.
            loss: The mean over the batch, and what it weighs.
            probabilities: Of classes, shape ``(N, K)``.
            labels: Shape ``(N,)``, or ``(N, K)`` for several labels.
        """
        scores: Any = self.sets[loader]
        for name, metric in scores.items():
            metric.update(*(loss if name == "loss" else (probabilities, labels)))
            yield name, metric, f"sets.{loader}.{name}"
