"""Class probabilities of ``trainer.predict`` as a CSV file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from nc_finetune.csv_text import csv_text
from nc_finetune.files import write_text_atomically

_SHARE_OF_LARGEST = 0.5


class PredictionWriter(L.Callback):
    """Write what ``trainer.predict`` returns: a line an image, in the order of the data.

    The columns are ``index``, ``prediction`` (the name of the most probable class) and one column a class with its
    probability, in ``[0, 1]``. Where the datamodule names its ``files``, they stand in place of the index, as ``file``.

    Of a model for several labels an image (its ``multilabel`` is true), ``prediction`` names all that are at least half
    as probable as the most probable one, divided by ``|``: a pick-all-labels loss draws the probabilities, a softmax,
    of m labels to 1/m each, and those of the others to 0.

    Args:
        path: The CSV file; an older one is replaced when predicting has ended.

    Example:
        >>> PredictionWriter("predictions.csv").path.name
        'predictions.csv'
    """

    def __init__(self, path: str | os.PathLike[str] = "predictions.csv") -> None:
        self.path = Path(path)
        self._rows: list[list[float]] = []

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with no rows.

        Raises:
            RuntimeError: If several processes predict: each would write its own share.
        """
        if trainer.world_size > 1:
            raise RuntimeError(f"predictions are written by one process, got {trainer.world_size}; set devices=1")
        self._rows = []

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Tensor,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the probabilities of a batch, shape ``(N, K)``."""
        self._rows.extend(outputs.tolist())

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file, whole or not at all."""
        width = len(self._rows[0]) if self._rows else 0
        data = getattr(trainer, "datamodule", None)
        names = getattr(data, "class_names", tuple(map(str, range(width))))
        files = getattr(data, "files", None)
        items = getattr(data, "predicted_items", range(len(self._rows))) if files is None else files
        kind = "index" if files is None else "file"
        several = bool(getattr(pl_module, "multilabel", False))
        lines = [
            [item, _prediction(names, row, several), *(f"{value:.6g}" for value in row)]
            for item, row in zip(items, self._rows, strict=True)
        ]
        write_text_atomically(self.path, csv_text([[kind, "prediction", *names], *lines]))


def _prediction(names: Sequence[str], probabilities: Sequence[float], several: bool) -> str:
    largest = max(probabilities)
    if not several:
        return names[probabilities.index(largest)]
    chosen = [name for name, value in zip(names, probabilities, strict=True) if value >= _SHARE_OF_LARGEST * largest]
    return "|".join(chosen)
