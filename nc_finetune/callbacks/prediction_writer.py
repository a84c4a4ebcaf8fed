"""Class probabilities of ``trainer.predict`` as a CSV file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from nc_finetune._common.atomic_files import write_text_atomically
from nc_finetune._common.csv_text import csv_text
from nc_finetune._common.data_facts import told_by

_SHARE_OF_LARGEST = 0.5


class PredictionWriter(L.Callback):
    """Write what ``trainer.predict`` returns: a line an image, in the order of the data.

    The columns are ``index``, ``prediction`` (the name of the most probable class) and one column a class with its
    probability, in ``[0, 1]``. Where the datamodule names its ``files``, they stand in place of the index, as ``file``.

    Of a model for several labels an image (its ``multilabel`` is true), ``prediction`` names all that are at least half
    as probable as the most probable one, divided by ``|``: a pick-all-labels loss draws the probabilities, a softmax,
    of m labels to 1/m each, and those of the others to 0. Where each class has a probability of its own, as behind a
    ``BCEWithLogitsLoss``, it names all of at least a half, perhaps none.

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
            ValueError: If there are several loaders, whose images have no one order.
        """
        if len(trainer.num_predict_batches) > 1:
            raise ValueError(
                f"predictions are written of one loader, got {len(trainer.num_predict_batches)}; predict each alone"
            )
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
        facts = told_by(trainer)
        names = facts.class_names(width) or tuple(map(str, range(width)))
        files, known = facts.files, facts.predicted_items
        items = files if files is not None else known if known is not None else range(len(self._rows))
        kind = "index" if files is None else "file"
        limited = trainer.limit_predict_batches not in (1, None) or bool(getattr(trainer, "fast_dev_run", False))
        lines = [
            [item, _prediction(names, row, _threshold(pl_module, row)), *(f"{value:.6g}" for value in row)]
            for item, row in zip(items, self._rows, strict=not limited)  # the first ones, where there is a limit
        ]
        write_text_atomically(self.path, csv_text([[kind, "prediction", *names], *lines]))


def _threshold(module: L.LightningModule, probabilities: Sequence[float]) -> float | None:
    """Return the probability from which a label is named; ``None`` names the most probable one alone."""
    if not getattr(module, "multilabel", False):
        return None
    return _SHARE_OF_LARGEST * (1 if getattr(module, "independent_classes", False) else max(probabilities))


def _prediction(names: Sequence[str], probabilities: Sequence[float], threshold: float | None) -> str:
    if threshold is None:
        return names[probabilities.index(max(probabilities))]
    return "|".join(name for name, value in zip(names, probabilities, strict=True) if value >= threshold)
