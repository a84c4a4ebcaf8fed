"""Which rows of a source are for training, validation and testing."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nc_finetune.data.sources.tables import Source
from nc_finetune.data.splits.file import SplitRows, compare_plans, read_plan, read_splits, write_splits
from nc_finetune.data.splits.groups import (
    group_names,
    k_folds_of_groups,
    split_off_groups,
    take_per_class_in_groups,
)
from nc_finetune.data.splits.stratified import Indices, give_back, k_folds, split_off, take_per_class
from nc_finetune.errors import DataWarning

DEFAULT_VAL_SIZE = 0.1


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """How a source is split; the arguments of :class:`~nc_finetune.ImageData` of the same names.

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
    group: str | None = None

    def __post_init__(self) -> None:
        for name, size in (("val_size", self.val_size), ("test_size", self.test_size)):
            if size is not None and not (0 <= size < 1 or (size >= 1 and size % 1 == 0)):
                raise ValueError(
                    f"{name} must be a share in (0, 1) or a number of images of at least 1 or 0 for none, got {size}"
                )
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
        """Return the table and the rows of each split; those of the source's own splits are all of theirs.

        Where splits are drawn, every class keeps an image for training: a fold or a share that would take all images of
        a class leaves one. Otherwise each count of a class differs from its exact share by less than 1.

        Raises:
            ValueError: If a split would be empty, or the file of splits was drawn with other arguments.
        """
        path = None if self.split_file is None else Path(self.split_file)
        if path is not None and path.exists():
            written = read_plan(path)
            found = read_splits(path, source.splits)
            if written is not None:
                compare_plans(path, self._written(), written)
            else:
                self._compare_sizes(path, source, found)
            return found
        found = _Drawing(self, source).rows()
        if path is not None:
            write_splits(path, source.splits, found, self._written())
        return found

    def _written(self) -> dict[str, Any]:
        """Return the arguments that make the splits."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "split_file"}

    def _compare_sizes(self, path: Path, source: Source, found: SplitRows) -> None:
        """Compare what the sizes tell with what is asked for, where a file does not say how it was drawn."""
        sizes = {split: len(rows) for split, (_, rows) in found.items()}
        drawn = {split for split, (table, _) in found.items() if table == "train"}
        pool = sum(sizes[split] for split in drawn)
        problems = []
        table = source.splits[found["train"][0]]
        counts = set(Counter(table.labels[row] for row in found["train"][1].tolist()).values())
        if self.samples_per_class is not None and counts != {self.samples_per_class}:
            problems.append(f"samples_per_class={self.samples_per_class}, has {min(counts)} to {max(counts)} a class")
        whole = self.samples_per_class is None and self.train_share is None
        if whole and "test" in drawn and not _is_size(sizes["test"], self.test_size, pool):
            problems.append(f"test_size={self.test_size}, has {sizes['test']} of {pool} images")
        rest = pool - sizes["test"] if "test" in drawn else pool
        exact = self.val_size is not None and self.val_size >= 1
        if (whole or exact) and "val" in drawn and not _is_size(sizes["val"], self._val_share, rest):
            problems.append(f"val_size={self._val_share}, has {sizes['val']} of {rest} images")
        if self.max_test_images is not None and "test" not in drawn and sizes["test"] > self.max_test_images:
            problems.append(f"max_test_images={self.max_test_images}, has {sizes['test']}")
        if problems:
            raise ValueError(
                f"{path} does not fit what is asked for: {'; '.join(problems)}; ask for what it has, give another"
                " split_file, or delete it to split anew"
            )
        warnings.warn(
            f"{path} does not say how it was drawn: of what is asked for, sizes alone could be compared with it",
            DataWarning,
            stacklevel=2,
        )

    @property
    def _val_share(self) -> int | float:
        if self.fold is not None:
            return 1 / self.num_folds
        return DEFAULT_VAL_SIZE if self.val_size is None else self.val_size


def _is_size(found: int, size: int | float, total: int) -> bool:
    return abs(found - (size * total if size < 1 else size)) <= 1


class _Drawing:
    """Draw the splits that a source does not bring along from its train table."""

    def __init__(self, plan: SplitPlan, source: Source) -> None:
        self.plan = plan
        self.source = source
        self.table = source.splits["train"]
        self.groups = None if plan.group is None else group_names(source, plan.group)["train"]

    def rows(self) -> SplitRows:
        plan, tables = self.plan, self.source.splits
        rows: SplitRows = {
            name: (name, np.arange(len(tables[name].labels), dtype=np.int64))
            for name in ("val", "test")
            if name in tables
        }
        pool = np.arange(len(self.table.labels), dtype=np.int64)
        if "test" not in rows and plan.test_size == 0:
            rows["test"] = ("train", pool[:0])
        elif "test" not in rows:
            held_out, pool = self._hold_out("test_size", pool, plan.test_size, seed=0)
            rows["test"] = ("train", held_out)
        elif plan.max_test_images is not None and plan.max_test_images < len(tables["test"].labels):
            rows["test"] = ("test", split_off(tables["test"].labels, plan.max_test_images, seed=0)[0])
        if plan.fold is not None:
            held_out, pool = self._fold(pool, plan.fold)
            rows["val"] = ("train", held_out)
        else:
            if "val" not in rows and plan.val_size == 0:
                rows["val"] = ("train", pool[:0])
            if plan.samples_per_class is not None:
                pool, rest = self._draw(pool, plan.samples_per_class, apart="val" not in rows)
                if "val" not in rows:
                    rows["val"] = ("train", self._cap(rest))
            elif "val" not in rows:
                size = DEFAULT_VAL_SIZE if plan.val_size is None else plan.val_size
                held_out, pool = self._hold_out("val_size", pool, size, plan.seed)
                rows["val"] = ("train", held_out)
        if plan.train_share is not None and plan.train_share < 1:
            pool = self._share(pool, plan.train_share)
        rows["train"] = ("train", pool)
        return rows

    def _labels(self, rows: Indices) -> list[int]:
        return [self.table.labels[row] for row in rows]

    def _label_sets(self, rows: Indices) -> list[tuple[int, ...]]:
        return [self.table.labels_of(row) for row in rows]

    def _groups(self, rows: Indices) -> list[str] | None:
        return None if self.groups is None else [self.groups[row] for row in rows]

    def _hold_out(self, name: str, rows: Indices, size: int | float, seed: int) -> tuple[Indices, Indices]:
        """Split rows of the train table in two: those that are held out, and the others."""
        groups = self._groups(rows)
        try:
            if groups is not None:
                held_out, rest = split_off_groups(self._labels(rows), groups, size, seed)
                return rows[held_out], rows[rest]
            held_out, _ = split_off(self._labels(rows), size, seed)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        kept = give_back(held_out, self._label_sets(rows), seed)
        if kept.size < held_out.size:
            warnings.warn(
                f"{name}: {kept.size} images are held out and not {held_out.size}, so that each class keeps one for"
                " training",
                DataWarning,
                stacklevel=2,
            )
        return rows[kept], np.setdiff1d(rows, rows[kept])

    def _share(self, rows: Indices, share: float) -> Indices:
        """Keep a share of the training rows, one of every class at least."""
        try:
            _, left_out = split_off(self._labels(rows), share, self.plan.seed)
        except ValueError as error:
            raise ValueError(f"train_share: {error}") from error
        left_out = give_back(left_out, self._label_sets(rows), self.plan.seed)
        return np.setdiff1d(rows, rows[left_out])

    def _fold(self, rows: Indices, fold: int) -> tuple[Indices, Indices]:
        """Hold a fold out, without the only images of a class."""
        groups, plan = self._groups(rows), self.plan
        if groups is not None:
            held_out = k_folds_of_groups(self._labels(rows), groups, plan.num_folds, plan.seed)[fold]
        else:
            every = k_folds(self._labels(rows), plan.num_folds, plan.seed)[fold]
            held_out = give_back(every, self._label_sets(rows), plan.seed, replace=False)
        return rows[held_out], np.setdiff1d(rows, rows[held_out])

    def _draw(self, rows: Indices, number: int, apart: bool) -> tuple[Indices, Indices]:
        """Draw rows of the train table, the same number of each class; the others are of other groups, if apart."""
        names = (*self.source.class_names, "no label")
        groups, seed = self._groups(rows), self.plan.seed
        try:
            if groups is not None and apart:
                drawn, rest = take_per_class_in_groups(self._labels(rows), groups, number, seed, names)
            else:
                drawn, rest = take_per_class(self._labels(rows), number, seed, names)
        except ValueError as error:
            raise ValueError(f"samples_per_class: {error}") from error
        return rows[drawn], rows[rest]

    def _cap(self, rest: Indices) -> Indices:
        """Keep ``val_size`` of the rows that were not drawn for training."""
        plan = self.plan
        if not rest.size:
            what = "all images" if self.groups is None else "images of all groups"
            raise ValueError(
                f"samples_per_class={plan.samples_per_class} takes {what}, so the val split is empty; ask for fewer"
            )
        if plan.val_size is None or plan.val_size == len(rest):
            return rest
        try:
            return rest[split_off(self._labels(rest), plan.val_size, plan.seed)[0]]
        except ValueError as error:
            raise ValueError(f"val_size: {error}") from error
