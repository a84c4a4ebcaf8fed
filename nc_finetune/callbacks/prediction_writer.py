"""Class probabilities of ``trainer.predict`` as a CSV file, and how far to trust them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from nc_finetune._common.atomic_files import check_file, write_text_atomically
from nc_finetune._common.csv_text import class_headings, csv_text, joined_names
from nc_finetune._common.data_facts import told_by
from nc_finetune.doubt import Doubts, DoubtState
from nc_finetune.doubt.state import DEFAULT_COVERAGE, NO_SETS, NO_STATISTICS

_SHARE_OF_LARGEST = 0.5


@dataclass(frozen=True)
class Prediction:
    """What is said of an image.

    Attributes:
        item: Its file, or its place.
        label: The name of the most probable class; of several labels all of them, divided as in the file.
        probability: Of that class; of several labels of the most probable one.
        in_set: Names of the classes in the conformal set; ``None`` where there are no scores to make one by.
        unlike: Share of the training images that lie further out; ``None`` where nobody knows.
        strangeness: By which images are ordered that lie further out than all of those; likewise.
        stranger: Whether it lies further out than 95 % of them; likewise.
    """

    item: str | int
    label: str
    probability: float
    in_set: tuple[str, ...] | None = None
    unlike: float | None = None
    strangeness: float | None = None
    stranger: bool | None = None


class PredictionWriter(L.Callback):
    r"""Write what ``trainer.predict`` returns: a line an image, in the order of the data.

    The columns are ``index``, ``prediction`` (the name of the most probable class) and one column a class with its
    probability, in ``[0, 1]``. Where the datamodule names its ``files``, they stand in place of the index, as ``file``.
    A class that is called as another column has ``class`` before its name there, such as ``class set``.

    Of a model with statistics of its training images, as :class:`KeepStatistics` and ``nc-finetune tune`` leave them,
    probabilities are tempered, and in place of ``prediction`` there are ``label`` (the most probable class),
    ``probability`` (of it), ``set`` (classes divided by ``|``: as many as it takes to hold the right one in a share
    ``coverage`` of cases; none, where no class is as likely as right ones are then), ``unlike`` (share of the training
    images that lie further out, in ``[0, 1]``) and ``stranger`` (``yes`` where that is less than 5 %). What the
    statistics do not know, as sets without images that the model was not trained on, is left out.

    Of a model for several labels an image (its ``multilabel`` is true), ``prediction`` names all that are at least half
    as probable as the most probable one, divided by ``|``: a pick-all-labels loss draws the probabilities, a softmax,
    of m labels to 1/m each, and those of the others to 0. Where each class has a probability of its own, as behind a
    ``BCEWithLogitsLoss``, it names all of at least a half, perhaps none.

    Where names are divided by ``|``, a ``|`` or a backslash of a name has a backslash before it:
    ``csv.reader([cell], delimiter="|", escapechar="\\", quoting=csv.QUOTE_NONE)`` tells them apart.

    Args:
        path: The CSV file; an older one is replaced when predicting has ended.
        coverage: How often the set is to hold the right class, on average over all images like those of training;
            ``None`` is 0.9 where there are sets.

    Raises:
        ValueError: If the coverage is not between 0 and 1; when predicting starts, if it is given and the model knows
            of no sets.

    Attributes:
        predictions: What was written, line by line.

    Example:
        >>> PredictionWriter("predictions.csv").path.name
        'predictions.csv'
    """

    def __init__(self, path: str | os.PathLike[str] = "predictions.csv", coverage: float | None = None) -> None:
        if coverage is not None and not 0 < coverage < 1:
            raise ValueError(f"coverage must lie between 0 and 1, such as 0.9, got {coverage}")
        self.path = Path(path)
        self.coverage = coverage
        self.predictions: list[Prediction] = []
        self._rows: list[list[float]] = []
        self._doubts: list[Doubts] = []
        self._seen: tuple[Tensor, Tensor] | None = None
        self._hook: Any = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with no rows.

        Raises:
            RuntimeError: If several processes predict: each would write its own share.
            ValueError: If there are several loaders, whose images have no one order, or a coverage without sets.
            OSError: If a folder is where the file goes.
        """
        check_file(self.path)
        if len(trainer.num_predict_batches) > 1:
            raise ValueError(
                f"predictions are written of one loader, got {len(trainer.num_predict_batches)}; predict each alone"
            )
        if trainer.world_size > 1:
            raise RuntimeError(f"predictions are written by one process, got {trainer.world_size}; set devices=1")
        self._rows, self._doubts, self.predictions = [], [], []
        state = _state(pl_module)
        if self.coverage is not None:
            self._check_sets(pl_module, state)
        if state is not None:
            self._hook = pl_module.get_submodule("head").register_forward_hook(self._take)

    def _check_sets(self, module: Any, state: DoubtState | None) -> None:
        if getattr(module, "multilabel", False):
            raise ValueError(
                "a coverage is of sets that hold the one right class, and images have several; leave it out"
            )
        if state is None:
            raise ValueError(f"coverage={self.coverage} asks for sets, but {NO_STATISTICS}")
        if not state.has_scores:
            raise ValueError(NO_SETS)

    def _take(self, _head: Any, inputs: Any, logits: Tensor) -> None:
        self._seen = inputs[0], logits

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Tensor,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the probabilities of a batch, shape ``(N, K)``, and what is to be said of them."""
        self._rows.extend(outputs.tolist())
        state = _state(pl_module)
        if state is not None and self._seen is not None:
            doubts: Doubts = state(*self._seen, self.coverage or DEFAULT_COVERAGE)
            self._doubts.append(Doubts(*(part.cpu() for part in doubts)))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the head alone."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = self._seen = None

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file, whole or not at all."""
        width = len(self._rows[0]) if self._rows else 0
        facts = told_by(trainer)
        names = facts.class_names(width) or tuple(map(str, range(width)))
        files, known = facts.files, facts.predicted_items
        items: Sequence[str | int] = (
            files if files is not None else known if known is not None else range(len(self._rows))
        )
        kind = "index" if files is None else "file"
        limited = trainer.limit_predict_batches not in (1, None) or bool(getattr(trainer, "fast_dev_run", False))
        # The first ones, where there is a limit.
        of_rows = zip(items, self._rows, strict=not limited)
        labels: list[tuple[str | int, str, float]] = [
            (item, _prediction(names, row, _threshold(pl_module, row)), max(row)) for item, row in of_rows
        ]
        state = _state(pl_module)
        self.predictions = [
            Prediction(item, label, probability, **said)
            for (item, label, probability), said in zip(labels, self._said(names, state, len(labels)), strict=True)
        ]
        told = [_cells(prediction) for prediction in self.predictions]
        columns = _columns(state)
        heads = kind, *columns
        lines = [
            [item, *(cells[column] for column in columns), *(f"{value:.6g}" for value in row)]
            for (item, *_), cells, row in zip(labels, told, self._rows, strict=False)
        ]
        write_text_atomically(self.path, csv_text([[*heads, *class_headings(names, heads)], *lines]))

    def _said(self, names: Sequence[str], state: DoubtState | None, number: int) -> list[dict[str, Any]]:
        """Return what the statistics say of each image; nothing without them."""
        if state is None:
            return [{}] * number
        found: list[dict[str, Any]] = []
        for doubts in self._doubts:
            rows = zip(*(part.tolist() for part in doubts[1:]), strict=True)
            for strangeness, unlike, stranger, chosen in rows:
                said: dict[str, Any] = {}
                if state.has_scores:
                    said["in_set"] = tuple(name for name, inside in zip(names, chosen, strict=True) if inside)
                if state.has_distances:
                    said |= {"strangeness": strangeness, "unlike": unlike, "stranger": stranger}
                found.append(said)
        return found


def _state(module: Any) -> DoubtState | None:
    found = getattr(module, "doubt", None)
    return found if isinstance(found, DoubtState) else None


def _columns(state: DoubtState | None) -> tuple[str, ...]:
    if state is None:
        return ("prediction",)
    known = ("set",) * state.has_scores, ("unlike", "stranger") * state.has_distances
    return "label", "probability", *known[0], *known[1]


def _cells(prediction: Prediction) -> dict[str, str]:
    return {
        "prediction": prediction.label,
        "label": prediction.label,
        "probability": f"{prediction.probability:.6g}",
        "set": joined_names(prediction.in_set or ()),
        "unlike": "" if prediction.unlike is None else f"{prediction.unlike:.4g}",
        "stranger": "yes" if prediction.stranger else "no",
    }


def _threshold(module: L.LightningModule, probabilities: Sequence[float]) -> float | None:
    """Return the probability from which a label is named; ``None`` names the most probable one alone."""
    if not getattr(module, "multilabel", False):
        return None
    return _SHARE_OF_LARGEST * (1 if getattr(module, "independent_classes", False) else max(probabilities))


def _prediction(names: Sequence[str], probabilities: Sequence[float], threshold: float | None) -> str:
    if threshold is None:
        return names[probabilities.index(max(probabilities))]
    return joined_names(name for name, value in zip(names, probabilities, strict=True) if value >= threshold)
