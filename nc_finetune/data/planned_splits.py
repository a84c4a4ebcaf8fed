"""Which rows of a source are for training, validation and testing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nc_finetune.data.sources import Source
from nc_finetune.data.split_file import SplitRows, read_splits, write_splits
from nc_finetune.data.splits import Indices, k_folds, split_off, take_per_class

DEFAULT_VAL_SIZE = 0.1


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """How a source is split; the arguments of :class:`~nc_finetune.ImageData` of the same names.

    Attributes:
        samples_per_class: Training images a class.
        train_share: Share of the training images that are kept.
        seed: Which sample is drawn, and which images are held out for validation.
        val_size: Images held out for validation.
        test_size: Images held out for the test.
        max_test_images: Images taken of the source's own test split.
        fold: Which fold is held out for validation.
        num_folds: Number of folds.
        split_file: Where the splits are written, and read again.

    Raises:
        ValueError: If an argument is out of range, or two exclude each other.
    """

    samples_per_class: int | None = None
    train_share: float | None = None
    seed: int = 0
    val_size: int | float | None = None
    test_size: int | float = 0.2
    max_test_images: int | None = None
    fold: int | None = None
    num_folds: int = 5
    split_file: str | None = None

    def __post_init__(self) -> None:
        for name, size in (("val_size", self.val_size), ("test_size", self.test_size)):
            if size is not None and not (0 < size < 1 or (size >= 1 and size % 1 == 0)):
                raise ValueError(f"{name} must be a share in (0, 1) or a number of images of at least 1, got {size}")
        if self.train_share is not None and not 0 < self.train_share <= 1:
            raise ValueError(f"train_share must lie in (0, 1], got {self.train_share}")
        for name, number in (("samples_per_class", self.samples_per_class), ("max_test_images", self.max_test_images)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if self.num_folds < 2 or not (self.fold is None or 0 <= self.fold < self.num_folds):
            raise ValueError(
                f"fold must lie in [0, num_folds) with num_folds >= 2, got {self.fold} of {self.num_folds}"
            )
        if self.train_share is not None and self.samples_per_class is not None:
            raise ValueError("train_share and samples_per_class both say how much to train on; give one of them")
        if self.fold is not None and (self.val_size is not None or self.samples_per_class is not None):
            raise ValueError("fold says what is held out for validation; leave val_size and samples_per_class out")

    def rows(self, source: Source) -> SplitRows:
        """Return the table and the rows of each split; those of the source's own splits are all of theirs."""
        path = None if self.split_file is None else Path(self.split_file)
        if path is not None and path.exists():
            return read_splits(path, source.splits)
        found = _Drawing(self, source).rows()
        if path is not None:
            write_splits(path, source.splits, found)
        return found


class _Drawing:
    """Draw the splits that a source does not bring along from its train table."""

    def __init__(self, plan: SplitPlan, source: Source) -> None:
        self.plan = plan
        self.source = source
        self.labels = source.splits["train"].labels

    def rows(self) -> SplitRows:
        plan, tables = self.plan, self.source.splits
        rows: SplitRows = {
            name: (name, np.arange(len(tables[name].labels), dtype=np.int64))
            for name in ("val", "test")
            if name in tables
        }
        pool = np.arange(len(self.labels), dtype=np.int64)
        if "test" not in rows:
            held_out, pool = self._hold_out("test_size", pool, plan.test_size, seed=0)
            rows["test"] = ("train", held_out)
        elif plan.max_test_images is not None and plan.max_test_images < len(tables["test"].labels):
            rows["test"] = ("test", split_off(tables["test"].labels, plan.max_test_images, seed=0)[0])
        if plan.fold is not None:
            held_out = pool[k_folds(self._labels(pool), plan.num_folds, plan.seed)[plan.fold]]
            pool = np.setdiff1d(pool, held_out)
            rows["val"] = ("train", held_out)
        elif plan.samples_per_class is not None:
            pool, rest = self._draw(pool, plan.samples_per_class)
            if "val" not in rows:
                rows["val"] = ("train", self._cap(rest))
        elif "val" not in rows:
            size = DEFAULT_VAL_SIZE if plan.val_size is None else plan.val_size
            held_out, pool = self._hold_out("val_size", pool, size, plan.seed)
            rows["val"] = ("train", held_out)
        if plan.train_share is not None and plan.train_share < 1:
            pool, _ = self._hold_out("train_share", pool, plan.train_share, plan.seed)
        rows["train"] = ("train", pool)
        return rows

    def _labels(self, rows: Indices) -> list[int]:
        return [self.labels[row] for row in rows]

    def _hold_out(self, name: str, rows: Indices, size: int | float, seed: int) -> tuple[Indices, Indices]:
        """Split rows of the train table in two."""
        try:
            held_out, rest = split_off(self._labels(rows), size, seed)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return rows[held_out], rows[rest]

    def _draw(self, rows: Indices, number: int) -> tuple[Indices, Indices]:
        """Draw rows of the train table, the same number of each class."""
        names = (*self.source.class_names, "no label")
        try:
            drawn, rest = take_per_class(self._labels(rows), number, self.plan.seed, names)
        except ValueError as error:
            raise ValueError(f"samples_per_class: {error}") from error
        return rows[drawn], rows[rest]

    def _cap(self, rest: Indices) -> Indices:
        """Keep ``val_size`` of the rows that were not drawn for training."""
        plan = self.plan
        if not rest.size:
            raise ValueError(
                f"samples_per_class={plan.samples_per_class} takes all images, so the val split is empty; ask for fewer"
            )
        if plan.val_size is None or plan.val_size == len(rest):
            return rest
        return self._hold_out("val_size", rest, plan.val_size, plan.seed)[0]
