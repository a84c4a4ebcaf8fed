"""What a candidate says of images that it was not trained on, and what follows for its epochs."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nc_finetune._common.atomic_files import write_atomically
from nc_finetune.metrics import AveragePrecision

FORMAT = 1  # of what is kept of a fold
_AS_GOOD = 0.005  # in shares of accuracy


@dataclass(frozen=True)
class HeldOut:
    """Logits of training images, each by a model that was trained on other folds, after some of its epochs.

    Attributes:
        logits: Shape ``(E, N, K)``, float32.
        targets: Labels ``(N,)``, or of several labels an image 0 and 1, ``(N, K)``.
        items: Places of the images in the training split, shape ``(N,)``, in rising order.
        folds: Which fold held each of them out, shape ``(N,)``.
        epochs: After how many epochs that was, E numbers in rising order.
        independent_classes: Whether classes are judged on their own, by a sigmoid, and not by a softmax.
        seconds: What the fits took; of those that an earlier process did, what they took there.

    Example:
        >>> logits = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> found = HeldOut(logits, torch.tensor([0, 1]), torch.arange(2), torch.arange(2), (1, 2))
        >>> found.scores, found.epoch, found.score
        ([0.5, 1.0], 2, 1.0)
    """

    logits: Tensor
    targets: Tensor
    items: Tensor
    folds: Tensor
    epochs: tuple[int, ...]
    independent_classes: bool = False
    seconds: float = 0.0

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.targets.ndim == 2

    @cached_property
    def scores(self) -> list[float]:
        """By epoch, in ``[0, 1]``: the share of the images that are recognised, or average precision, mean by fold."""
        values, weights = self._judged
        return ((values * weights).sum(1) / weights.sum()).tolist()

    @cached_property
    def epoch(self) -> int:
        """After how many epochs to stop: the fewest that are as good as the best.

        As good is within one standard error of the difference on the same images, or of average precision on the same
        folds (Breiman, Friedman, Olshen & Stone 1984, Classification and Regression Trees, 3.4.3, here paired), and
        within half a point: of few images the error alone would let the first epoch pass for the best.
        """
        return self.epochs[self._place]

    @property
    def score(self) -> float:
        """The score after :attr:`epoch`; ``nan`` where none is defined."""
        return self.scores[self._place]

    @property
    def chosen_logits(self) -> Tensor:
        """The logits after :attr:`epoch`, shape ``(N, K)``."""
        return self.logits[self._place]

    def probabilities(self, epoch: int | None = None) -> Tensor:
        """Return class probabilities after some epochs, shape ``(N, K)``; ``None`` is :attr:`epoch`.

        Raises:
            ValueError: If nothing is known of that epoch.
        """
        if epoch is not None and epoch not in self.epochs:
            raise ValueError(f"epoch must be one of {list(self.epochs)}, got {epoch}")
        return self._probabilities(self._place if epoch is None else self.epochs.index(epoch))

    def _probabilities(self, place: int) -> Tensor:
        logits = self.logits[place]
        return logits.sigmoid() if self.independent_classes else logits.softmax(1)

    @cached_property
    def _place(self) -> int:
        scores = torch.tensor(self.scores)
        if not scores.isfinite().any():
            return len(self.epochs) - 1
        best = int(scores.nan_to_num(-1.0).argmax())
        values, weights = self._judged
        shares = weights / weights.sum()
        for place in range(best):
            differences = values[best] - values[place]
            mean = float((shares * differences).sum())
            error = math.sqrt(float((shares.square() * (differences - mean).square()).sum()))
            if mean <= min(error, _AS_GOOD):
                return place
        return best

    @cached_property
    def _judged(self) -> tuple[Tensor, Tensor]:
        """Return values ``(E, U)`` of what counts as one observation, and their weights ``(U,)``."""
        if not self.multi_label:
            right = (self.logits.argmax(2) == self.targets) & self.logits.isfinite().all(2)
            return right.double(), torch.ones(len(self.targets), dtype=torch.float64)
        numbers = sorted(set(self.folds.tolist()))
        values = [
            [self._average_precision(place, self.folds == fold) for fold in numbers]
            for place in range(len(self.epochs))
        ]
        weights = torch.stack([(self.folds == fold).sum() for fold in numbers]).double()
        found = torch.tensor(values, dtype=torch.float64)
        known = found.isfinite().all(0)  # a fold in which no image has a label ranks nothing
        return (found[:, known], weights[known]) if known.any() else (found, weights)

    def _average_precision(self, place: int, rows: Tensor) -> float:
        metric = AveragePrecision(self.targets.shape[1])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="average precision")  # of labels that a fold does not have
            metric.update(self._probabilities(place)[rows], self.targets[rows])
            return float(metric.compute())


def joined(parts: list[HeldOut]) -> HeldOut:
    """Put the folds of one candidate together, its images in rising order.

    Args:
        parts: One a fold, of the same epochs.
    """
    items = torch.cat([part.items for part in parts])
    order = items.argsort()
    return HeldOut(
        logits=torch.cat([part.logits for part in parts], 1)[:, order],
        targets=torch.cat([part.targets for part in parts])[order],
        items=items[order],
        folds=torch.cat([part.folds for part in parts])[order],
        epochs=parts[0].epochs,
        independent_classes=parts[0].independent_classes,
        seconds=sum(part.seconds for part in parts),
    )


def write_held_out(part: HeldOut, path: Path) -> None:
    """Keep a fold in a safetensors file: all of it, or nothing."""
    tensors = {"logits": part.logits, "targets": part.targets, "items": part.items, "folds": part.folds}
    said = {"epochs": part.epochs, "independent_classes": part.independent_classes, "seconds": part.seconds}
    metadata = {"format": str(FORMAT), "said": json.dumps(said)}
    write_atomically(path, save({name: value.contiguous() for name, value in tensors.items()}, metadata))


def read_held_out(path: Path) -> HeldOut | None:
    """Return what was kept of a fold; ``None`` where nothing is, or it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("logits", "targets", "items", "folds")}
            said = json.loads(file.metadata()["said"])
        return HeldOut(**tensors, **{**said, "epochs": tuple(said["epochs"])})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None
