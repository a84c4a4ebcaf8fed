"""Splits that keep images of one group together: those of a person, a plant, a video."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nc_finetune.data.columns.image_columns import below_one_folder
from nc_finetune.data.sources.tables import ImageTable, Source
from nc_finetune.data.splits.stratified import Indices, no_such_part, rank, take_per_class


def group_names(source: Source, group: str) -> dict[str, list[str]]:
    """Return the group of each image.

    Args:
        source: The images.
        group: A column of the source; or a regular expression that is searched for in the name of each file, or where
            it is not in all of them in its path below the source. The group is the expression's first group, or else
            all that matches.

    Returns:
        By split of the source, a name for each row.

    Raises:
        ValueError: If there is neither, or an image has no group.
    """
    tables = source.splits
    if all(table.others is not None and group in table.others.column_names for table in tables.values()):
        return {split: _cells(table, group, split) for split, table in tables.items()}
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise ValueError(_unknown(source, group, f"no regular expression: {error}")) from error
    paths = [path for table in tables.values() for path in table.names()]
    if not any(paths):
        raise ValueError(_unknown(source, group, "and the images have no names of files"))
    attempts = [(shown, [pattern.search(path) for path in shown]) for shown in (_names(paths), below_one_folder(paths))]
    _, found = min(attempts, key=lambda attempt: attempt[1].count(None))
    if None in found:
        without = below_one_folder(paths)[found.index(None)]
        raise ValueError(_unknown(source, group, f"and as a regular expression it is not in {without!r}"))
    names = iter([_matched(match) for match in found])
    return {split: [next(names) for _ in table.labels] for split, table in tables.items()}


def _names(paths: Sequence[str]) -> list[str]:
    return [Path(path).name for path in paths]


def _matched(match: Any) -> str:
    found: str | None = match[1] if match.re.groups else match[0]
    return found or ""


def _cells(table: ImageTable, column: str, split: str) -> list[str]:
    assert table.others is not None  # noqa: S101 - for the type checker
    cells = table.others[column][:]
    if empty := [row for row, cell in enumerate(cells) if cell is None or str(cell).strip() == ""]:
        raise ValueError(f"row {empty[0]} of the {split} split has no group in the column {column!r}; fill it in")
    return [str(cell) for cell in cells]


def _unknown(source: Source, group: str, problem: str) -> str:
    columns = sorted({name for table in source.splits.values() if table.others for name in table.others.column_names})
    return (
        f"group={group!r} is no column of every split ({', '.join(columns) or 'there are none'}), {problem}; name a"
        " column, or give a regular expression that every file name has"
    )


class Groups:
    """The groups of some rows, and how many rows of each class are in each.

    Args:
        seed: In which order groups are taken: by a hash of the seed and the group's first row.
    """

    def __init__(self, labels: Sequence[int], names: Sequence[str], seed: int) -> None:
        number = {name: place for place, name in enumerate(dict.fromkeys(names))}
        self.of_row = np.array([number[name] for name in names], dtype=np.int64)
        kinds = {label: place for place, label in enumerate(sorted(set(labels)))}
        self.counts = np.zeros((len(number), len(kinds)))
        np.add.at(self.counts, (self.of_row, np.array([kinds[label] for label in labels])), 1)
        _, first = np.unique(self.of_row, return_index=True)
        self.order = sorted(range(len(number)), key=lambda group: rank(seed, int(first[group])))
        self.totals = self.counts.sum(axis=0)

    def rows(self, groups: Sequence[int]) -> Indices:
        """Return the rows of some groups, in rising order."""
        return np.flatnonzero(np.isin(self.of_row, list(groups))).astype(np.int64)


def split_off_groups(
    labels: Sequence[int], names: Sequence[str], size: int | float, seed: int
) -> tuple[Indices, Indices]:
    """Split whole groups off, keeping the shares of the classes as well as groups allow.

    Groups are taken in an order that is drawn, each where it brings the shares of the classes nearer to what is asked
    for, and where it leaves images of all of its classes behind. The size is a share in ``(0, 1)``, or a number of at
    least 1; it is met as nearly as groups allow.

    Returns:
        The rows that were split off and the others, both in rising order.

    Raises:
        ValueError: If no group can be split off.

    Example:
        >>> held_out, rest = split_off_groups([0, 1] * 6, list("aabbccddeeff"), 4, seed=0)
        >>> held_out.size, rest.size
        (4, 8)
    """
    total = len(labels)
    share = size if 0 < size < 1 else size / total
    if not 0 < share < 1:
        raise no_such_part(size, total)
    groups = Groups(labels, names, seed)
    held = np.zeros_like(groups.totals)
    taken: set[int] = set()

    def distance(counts: NDArray[np.float64]) -> float:
        return float(np.square(counts / groups.totals - share).sum())

    for group in (*groups.order, *groups.order):  # what was too much at first may fill a gap
        counts = groups.counts[group]
        if group not in taken and _leaves_some(groups, held, counts) and distance(held + counts) < distance(held):
            held = held + counts
            taken.add(group)
    if not taken:
        free = [group for group in groups.order if _leaves_some(groups, held, groups.counts[group])]
        if not free:
            raise ValueError(
                f"none of the {len(groups.order)} groups can be held out: each holds all images of a class; give more"
                " groups to each class, or leave group out"
            )
        taken = {min(free, key=lambda group: distance(groups.counts[group]))}
    chosen = groups.rows(sorted(taken))
    return chosen, np.setdiff1d(np.arange(total, dtype=np.int64), chosen)


def _leaves_some(groups: Groups, held: NDArray[np.float64], counts: NDArray[np.float64]) -> bool:
    return bool(((held + counts < groups.totals) | (counts == 0)).all())


def take_per_class_in_groups(
    labels: Sequence[int], names: Sequence[str], number: int, seed: int, class_names: Sequence[str] | None = None
) -> tuple[Indices, Indices]:
    """Draw the same number of rows from every class, and return the rows of groups of which none was drawn.

    Returns:
        The rows that were drawn, and the rows of the groups that nothing was drawn of.

    Raises:
        ValueError: If a class has fewer rows.
    """
    groups = Groups(labels, names, seed)
    missing = np.minimum(groups.totals, number)
    side: list[int] = []
    for group in groups.order:
        if ((missing > 0) & (groups.counts[group] > 0)).any():
            side.append(group)
            missing = missing - groups.counts[group]
    rows = groups.rows(side)
    drawn, _ = take_per_class([labels[row] for row in rows], number, seed, class_names)
    return rows[drawn], np.setdiff1d(np.arange(len(labels), dtype=np.int64), rows)


def k_folds_of_groups(labels: Sequence[int], names: Sequence[str], number: int, seed: int) -> list[Indices]:
    """Divide rows into folds of whole groups with the shares of the classes, as scikit-learn's StratifiedGroupKFold.

    Groups whose classes differ most in number come first, each into the fold where the shares of the classes then
    differ least between folds.

    Returns:
        The rows of each fold, in rising order.

    Raises:
        ValueError: If there are fewer groups than folds, or fewer than 2 folds.

    Example:
        >>> [fold.size for fold in k_folds_of_groups([0, 1] * 6, list("aabbccddeeff"), 3, seed=0)]
        [4, 4, 4]
    """
    groups = Groups(labels, names, seed)
    if not 2 <= number <= len(groups.order):
        raise ValueError(
            f"{len(groups.order)} groups cannot be divided into {number} folds; give 2 to {len(groups.order)}"
        )
    folds = np.zeros((number, len(groups.totals)))
    members: list[list[int]] = [[] for _ in range(number)]
    for group in sorted(groups.order, key=lambda group: -groups.counts[group].std()):
        share = groups.counts[group] / groups.totals
        spread = [
            float((folds + share * (np.arange(number) == fold)[:, None]).std(axis=0).mean()) for fold in range(number)
        ]
        best = min(range(number), key=lambda fold: (round(spread[fold], 12), folds[fold].sum(), fold))
        folds[best] += share
        members[best].append(group)
    return [groups.rows(some) for some in members]


def shared_groups(groups: dict[str, list[str]], rows: dict[str, tuple[str, Indices]]) -> dict[str, tuple[str, ...]]:
    """Return the groups that have images in more than one split, and which splits these are."""
    where: dict[str, list[str]] = {}
    for split, (table, indices) in rows.items():
        for name in dict.fromkeys(groups[table][row] for row in indices):
            where.setdefault(name, []).append(split)
    return {name: tuple(splits) for name, splits in where.items() if len(splits) > 1}
