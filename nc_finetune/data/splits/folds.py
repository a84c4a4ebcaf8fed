"""Folds of a labelled sample, each to be judged by what the others teach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from nc_finetune.data.splits.groups import k_folds_of_groups
from nc_finetune.data.splits.stratified import Indices, k_folds


def held_out_folds(
    labels: Sequence[int],
    number: int,
    seed: int,
    label_sets: Sequence[tuple[int, ...]] | None = None,
    groups: Sequence[str] | None = None,
) -> list[Indices]:
    """Divide rows into folds with the shares of the classes, so that whatever is held out is taught by the rest.

    Where a class has fewer rows than there are folds, as many folds hold one of its rows out, which is leaving one
    out. A row, or a group, is held out in no fold if a class would have none left to learn from, and folds of which
    nothing stays are none.

    Args:
        labels: The label of each row, by which folds are stratified.
        number: Folds, at least 2; there are fewer where there are fewer rows, or groups.
        seed: Which rows are together.
        label_sets: All labels of each row; ``None`` is the one of ``labels``.
        groups: The group of each row, which lies in one fold; ``None`` is one for each row.

    Returns:
        The rows of each fold, in rising order, no row twice.

    Raises:
        ValueError: If fewer than 2 folds are asked for, or nothing can be held out.

    Example:
        >>> [fold.tolist() for fold in held_out_folds([0, 0, 1, 1, 1, 2], 5, seed=0)]
        [[0], [1], [3], [4], [2]]
    """
    if number < 2:
        raise ValueError(f"folds must be at least 2, got {number}")
    sets = [(label,) for label in labels] if label_sets is None else label_sets
    names = list(map(str, range(len(labels)))) if groups is None else groups
    most = min(number, len(set(names)))
    folds: list[Indices] = []
    if most >= 2:
        folds = k_folds(labels, most, seed) if groups is None else k_folds_of_groups(labels, groups, most, seed)
    kept = [_teachable(fold, sets, names) for fold in folds]
    if not any(fold.size for fold in kept):
        of = "images" if groups is None else "groups of images"
        raise ValueError(
            f"folds need a class with two {of} at least, one to be trained on while the other is held out, and"
            f" none of the {len({label for row in sets for label in row})} classes has them; give more images a class"
        )
    return [fold for fold in kept if fold.size]


def _teachable(fold: Indices, sets: Sequence[tuple[int, ...]], names: Sequence[str]) -> Indices:
    """Give back whole groups until every class of the fold has a row outside of it."""
    totals = Counter(label for row in sets for label in row)
    held = Counter(label for row in fold for label in sets[row])
    left = fold.tolist()
    for label in sorted(held):
        while held[label] and held[label] == totals[label]:
            name = names[next(row for row in left if label in sets[row])]
            held.subtract(label for row in left if names[row] == name for label in sets[row])
            left = [row for row in left if names[row] != name]
    return np.asarray(left, dtype=np.int64)
