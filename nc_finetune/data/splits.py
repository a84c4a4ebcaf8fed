"""Deterministic, stratified splits that depend on nothing but the labels and a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def _shuffled_by_class(labels: Sequence[int], seed: int) -> list[list[int]]:
    """List the rows of each class in an order drawn from a hash of seed and row: the same on every platform."""
    rows: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for row, label in enumerate(labels):
        rows[label].append(row)

    def key(row: int) -> bytes:
        return hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=8).digest()

    return [sorted(group, key=key) for group in rows.values()]


def _indices(rows: list[int]) -> Indices:
    return np.asarray(sorted(rows), dtype=np.int64)


def take_per_class(labels: Sequence[int], number: int, seed: int) -> tuple[Indices, Indices]:
    """Draw the same number of rows from every class.

    Args:
        labels: The label of each row.
        number: Rows a class, at least 1.
        seed: Which sample to draw.

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
    for group in groups:
        if len(group) < number:
            raise ValueError(f"{number} images a class were asked for, class {labels[group[0]]} has {len(group)}")
    return _indices([row for group in groups for row in group[:number]]), _indices(
        [row for group in groups for row in group[number:]]
    )


def split_off(labels: Sequence[int], size: int | float, seed: int) -> tuple[Indices, Indices]:
    """Split rows in two, keeping the shares of the classes.

    Args:
        labels: The label of each row.
        size: Rows to split off: a share in ``(0, 1)``, or a number of rows of at least 1. Every class gives its
            share, rounded so that the total is met.
        seed: Which rows to take.

    Returns:
        The rows that were split off and the others, both in rising order.

    Raises:
        ValueError: If the size leaves one side empty.

    Example:
        >>> held_out, rest = split_off([0, 1] * 10, 0.2, seed=0)
        >>> held_out.size, rest.size
        (4, 16)
    """
    total = len(labels)
    number = round(size * total) if isinstance(size, float) else size
    if not 0 < number < total:
        raise ValueError(f"cannot split {number} of {total} images off (size {size}): both sides must keep some")
    # Give each row the quantile that it has within its class: the first rows by quantile hold every class's share.
    ranked = [
        ((rank + 0.5) / len(group), row) for group in _shuffled_by_class(labels, seed) for rank, row in enumerate(group)
    ]
    chosen = [row for _, row in sorted(ranked)[:number]]
    return _indices(chosen), _indices(sorted(set(range(total)) - set(chosen)))
