"""What the steps of a tuning share: images, folder, time, and what has been judged so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from nc_finetune.classifier import ImageClassifier
from nc_finetune.data import ImageData, TrainingFold, training_folds
from nc_finetune.files import save_delta
from nc_finetune.tuning.folder import MODEL, TuneFolder
from nc_finetune.tuning.images import TestImages
from nc_finetune.tuning.judged import Judged
from nc_finetune.tuning.readouts import FOLDS

MOST_SECONDS = 600.0


class Clock:
    """How much time there is, and how much has been spent, by earlier processes, too.

    Args:
        seconds: What is given; ``None`` is what :attr:`budget` is set to, ten minutes at most.

    Example:
        >>> clock = Clock(60)
        >>> clock.count(50)
        >>> 9 < clock.left <= 10
        True
    """

    def __init__(self, seconds: float | None) -> None:
        self.given = seconds
        self.budget = MOST_SECONDS if seconds is None else seconds
        self._earlier = 0.0
        self._start = time.perf_counter()

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self._earlier + time.perf_counter() - self._start

    @property
    def left(self) -> float:
        """Seconds to go; negative beyond the end."""
        return self.budget - self.spent

    def count(self, seconds: float) -> None:
        """Count what an earlier process has spent on something that is not done again."""
        self._earlier += max(0.0, seconds)


@dataclass
class Work:
    """What the steps share.

    Attributes:
        folder: Where everything is kept.
        data: The training images; their size changes from step to step.
        tested: Those of the test.
        clock: The time.
        seed: Of everything that is drawn.
        tell: Called with lines of progress.
        judged: What was judged so far, from cheap to dear.
        left_out: What was not tried for want of time.
    """

    folder: TuneFolder
    data: ImageData
    tested: TestImages | None
    clock: Clock
    seed: int
    tell: Callable[[str], None]
    judged: list[Judged] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @cached_property
    def labels(self) -> Tensor:
        """The label of each training image, shape ``(N,)``."""
        return torch.tensor(self.data.images("train").labels)

    @cached_property
    def folds(self) -> list[TrainingFold]:
        """The folds on which everything is judged alike; none where nothing can be held out."""
        try:
            return training_folds(self.data, FOLDS, self.seed)
        except ValueError:
            return []

    def save(self, model: ImageClassifier) -> None:
        """Write a model, in place of the one before."""
        save_delta(model, self.folder.path / MODEL, self.data.class_names, data=self.data)
