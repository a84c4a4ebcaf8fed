"""Deterministic, stratified splits that depend on nothing but the labels and a seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def rank(seed: int, row: int) -> bytes:
    """Return the place of a row in an order that is drawn: the same on every platform."""
    return hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=8).digest()


def _shuffled_by_class(labels: Sequence[int], seed: int) -> list[list[int]]:
    """List the rows of each class in an order drawn from a hash of seed and row: the same on every platform."""
    rows: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for row, label in enumerate(labels):
        rows[label].append(row)
    return [sorted(group, key=lambda row: rank(seed, row)) for group in rows.values()]


def _indices(rows: list[int]) -> Indices:
    return np.asarray(sorted(rows), dtype=np.int64)


def take_per_class(
    labels: Sequence[int], number: int, seed: int, class_names: Sequence[str] | None = None
) -> tuple[Indices, Indices]:
    """Draw the same number of rows from every class that occurs.

    Args:
        labels: The label of each row.
        number: Rows a class, at least 1.
        seed: Which sample to draw.
        class_names: K names for the error; ``None`` names classes by their labels.

    Returns:
        The rows that were drawn and the others, both in rising order.

    Raises:
        ValueError: If a class has fewer rows.

    Example:
        >>> drawn, rest = take_per_class([0, 1, 0, 1, 1], 1, seed=0)
        >>> len(drawn), len(rest)
        (2, 3)
    """
    groups = _shuffled_by_class(labels, seed)
    if short := [group for group in groups if len(group) < number]:
        smallest = min(short, key=len)
        label = labels[smallest[0]]
        name = label if class_names is None else repr(class_names[label])
        raise ValueError(f"{number} images a class were asked for, class {name} has {len(smallest)}; ask for fewer")
    return _indices([row for group in groups for row in group[:number]]), _indices(
        [row for group in groups for row in group[number:]]
    )


def split_off(labels: Sequence[int], size: int | float, seed: int) -> tuple[Indices, Indices]:
    """Split rows in two, keeping the shares of the classes.

    Args:
        labels: The label of each row.
        size: Rows to split off: a share in ``(0, 1)``, or a number of rows of at least 1. The count of every class
            differs from its exact share by less than 1.
        seed: Which rows to take.

    Returns:
        The rows that were split off and the others, both in rising order.

    Raises:
        ValueError: If the size is neither, or leaves one side empty.

    Example:
        >>> held_out, rest = split_off([0, 1] * 10, 0.2, seed=0)
        >>> held_out.size, rest.size
        (4, 16)
    """
    total = len(labels)
    number = round(size * total) if 0 < size < 1 else size
    if not (0 < number < total and number == int(number)):
        raise no_such_part(size, total)
    # Round the running total and not each class, so that the total is met; in an order that is drawn, too, so that of
    # many small classes not always the same ones give a row.
    chosen: list[int] = []
    seen = 0
    for group in sorted(_shuffled_by_class(labels, seed), key=lambda group: rank(seed, group[0])):
        seen += len(group)
        chosen += group[: seen * int(number) // total - len(chosen)]
    return _indices(chosen), _indices(sorted(set(range(total)) - set(chosen)))


def no_such_part(size: int | float, total: int) -> ValueError:
    """Return the error of a size that cannot be split off."""
    return ValueError(
        f"cannot split {size} of {total} images off: give a share in (0, 1) or a whole number, and leave at least"
        " one image on both sides"
    )


def give_back(held_out: Indices, label_sets: Sequence[tuple[int, ...]], seed: int, replace: bool = True) -> Indices:
    """Leave an image of every class among those that are not held out.

    Rows are given back, and to ``replace`` them others held out, of classes that have more than one left, so that the
    size stays.

    Returns:
        The rows to hold out, in rising order: the same ones where no class lost all of its rows. At least one stays.

    Example:
        >>> give_back(np.array([0, 1]), [(0,), (1,), (1,), (1,)], seed=0).tolist()
        [1, 2]
    """
    chosen = set(held_out.tolist())
    left = Counter(label for row, labels in enumerate(label_sets) if row not in chosen for label in labels)
    lacking = sorted({label for row in chosen for label in label_sets[row]} - set(left))
    returned: set[int] = set()
    for label in lacking:
        if left[label]:
            continue
        spare = _spare(label_sets, left, chosen | returned, seed) if replace else None
        if spare is None and len(chosen) == 1:
            break
        row = max((row for row in chosen if label in label_sets[row]), key=lambda row: rank(seed, row))
        chosen.remove(row)
        returned.add(row)
        left.update(label_sets[row])
        if spare is not None:
            chosen.add(spare)
            left.subtract(label_sets[spare])
    return _indices(list(chosen))


def _spare(label_sets: Sequence[tuple[int, ...]], left: Counter[int], taken: set[int], seed: int) -> int | None:
    """Return a row of a class that has most rows left, and more than one of each of its labels."""
    free = [row for row, labels in enumerate(label_sets) if row not in taken and labels]
    spare = [row for row in free if all(left[label] > 1 for label in label_sets[row])]
    return max(spare, key=lambda row: (min(left[label] for label in label_sets[row]), rank(seed, row)), default=None)


def draw_stratified(labels: Sequence[int], number: int, seed: int, at_least: int = 2) -> Indices:
    """Draw rows that keep the shares of the classes, and miss none.

    Args:
        labels: The label of each row.
        number: Rows to draw; there are more where ``at_least`` of each class are.
        seed: Which rows.
        at_least: Rows of every class, or all that it has.

    Returns:
        The rows, in rising order; all where there are no more than ``number``.

    Example:
        >>> draw_stratified([0] * 96 + [1] * 4, 10, seed=0).size
        10
    """
    if number >= len(labels):
        return _indices(list(range(len(labels))))
    groups = _shuffled_by_class(labels, seed)
    fewest = [min(at_least, len(group)) for group in groups]
    left = max(number - sum(fewest), 0)
    others, seen, given = len(labels) - sum(fewest), 0, 0
    chosen: list[int] = []
    for group, few in zip(groups, fewest, strict=True):
        seen += len(group) - few
        more = seen * left // others - given if others else 0
        given += more
        chosen += group[: few + more]
    return _indices(chosen)


def k_folds(labels: Sequence[int], number: int, seed: int) -> list[Indices]:
    """Divide rows into folds that have the shares of the classes.

    Returns:
        The rows of each fold, in rising order; folds differ by at most one row, in all and in every class.

    Raises:
        ValueError: If there are fewer rows than folds, or fewer than 2 folds.

    Example:
        >>> [fold.size for fold in k_folds([0, 1] * 5, 3, seed=0)]
        [4, 3, 3]
    """
    if not 2 <= number <= len(labels):
        raise ValueError(f"{len(labels)} images cannot be divided into {number} folds; give 2 to {len(labels)}")
    ordered = [row for group in _shuffled_by_class(labels, seed) for row in group]
    return [_indices(ordered[fold::number]) for fold in range(number)]


def splits_hash(rows: Mapping[str, tuple[str, Indices]]) -> str:
    """Hash which rows are in which split."""
    digest = hashlib.blake2b(digest_size=8)
    for split in sorted(rows):
        table, indices = rows[split]
        digest.update(repr((split, table, indices.tolist())).encode())
    return digest.hexdigest()
