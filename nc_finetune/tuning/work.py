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
from nc_finetune.run.ray_tasks import RayTasks
from nc_finetune.tuning.folder import MODEL, TuneFolder
from nc_finetune.tuning.images import Hashes, TestImages, never_parted
from nc_finetune.tuning.judged import Judged
from nc_finetune.tuning.readouts import FOLDS

MOST_SECONDS = 600.0
MEASURED = 2000  # images that the page measures


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
        hashes: Of the images.
        clock: The time.
        seed: Of everything that is drawn.
        tell: Called with lines of progress.
        judged: What was judged so far, from cheap to dear.
        left_out: What was not tried for want of time.
        lost: What was judged of networks that were not chosen.
        executor: Spreads candidates over processes; ``None`` judges them here.
        notes: What has been said of the data and not been told yet.
        done_here: Steps of this process.
        bad_said: Whether bad images have been named.
        told: Notes that have been told.
    """

    folder: TuneFolder
    data: ImageData
    tested: TestImages | None
    hashes: Hashes
    clock: Clock
    seed: int
    tell: Callable[[str], None]
    judged: list[Judged] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    lost: list[Judged] = field(default_factory=list)
    executor: RayTasks | None = None
    notes: dict[str, None] = field(default_factory=dict)
    done_here: set[str] = field(default_factory=set)
    bad_said: bool = False
    told: set[str] = field(default_factory=set)

    def tell_notes(self) -> None:
        """Tell what has been said of the data since the last time."""
        for note in list(self.notes):
            del self.notes[note]
            if note in self.told:
                continue
            self.told.add(note)
            self.tell(f"note: {note}")

    @cached_property
    def groups(self) -> list[str] | None:
        """What is never parted: the groups of the data, and copies of an image, in whatever groups they are."""
        return never_parted(self.data.train_groups, self.hashes.train)

    @cached_property
    def labels(self) -> Tensor:
        """The label of each training image, shape ``(N,)``."""
        return torch.tensor(self.data.images("train").labels)

    @cached_property
    def folds(self) -> list[TrainingFold]:
        """The folds on which everything is judged alike; none where nothing can be held out."""
        try:
            return training_folds(self.data, FOLDS, self.seed, self.groups)
        except ValueError as error:
            if self.data.train_groups is not None:
                raise ValueError(f"{error}; or leave group out, and trust no estimate") from error
            return []

    def save(self, model: ImageClassifier) -> None:
        """Write a model, in place of the one before."""
        save_delta(model, self.folder.path / MODEL, self.data.class_names, data=self.data)
