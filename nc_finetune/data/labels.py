"""From a column of labels to class names and integers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets


def number_labels(splits: dict[str, datasets.Dataset], column: str) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Name the classes and number the labels, in the same way in every split.

    Args:
        splits: HF datasets by split, ``"train"`` among them.
        column: Name of their column of labels: declared classes, integers or strings. Where the table declares no
            classes, they are the labels that occur in any split, in rising order.

    Returns:
        K names, and by split the label of each row in ``[0, K)``.

    Raises:
        ValueError: If a row has no label, or the splits differ in what a label is.

    Example:
        >>> import datasets
        >>> number_labels({"train": datasets.Dataset.from_dict({"label": [30, 4, 30]})}, "label")
        (('4', '30'), {'train': [1, 0, 1]})
    """
    names = _declared_names({split: rows.features[column] for split, rows in splits.items()})
    limit = math.inf if names is None else len(names)
    values = {split: _checked_values(list(rows[column]), limit, split) for split, rows in splits.items()}
    if names is not None:
        return names, values
    occurring = {value for group in values.values() for value in group}
    if len({isinstance(value, str) for value in occurring}) > 1:
        raise ValueError(f"column {column!r} must hold integers in every split or strings in every split")
    known = sorted(occurring)
    number = {value: label for label, value in enumerate(known)}
    return tuple(map(str, known)), {split: [number[value] for value in group] for split, group in values.items()}


def number_label_sets(
    splits: dict[str, datasets.Dataset], column: str
) -> tuple[tuple[str, ...], dict[str, list[tuple[int, ...]]]]:
    """Do what :func:`number_labels` does where each row has a list of labels, which may be empty.

    Args:
        splits: HF datasets by split, ``"train"`` among them.
        column: Name of their column of lists.

    Returns:
        K names, and by split the labels of each row, in rising order, each once.

    Raises:
        ValueError: If a row has no list, or a label is none.

    Example:
        >>> import datasets
        >>> number_label_sets({"train": datasets.Dataset.from_dict({"tags": [["b", "a"], [], ["b"]]})}, "tags")
        (('a', 'b'), {'train': [(0, 1), (), (1,)]})
    """
    import datasets as hf

    lists = {split: list(rows[column]) for split, rows in splits.items()}
    for split, values in lists.items():
        if None in values:
            raise ValueError(f"row {values.index(None)} of the {split} split has no list of labels; give an empty one")
    flat = {
        split: hf.Dataset.from_dict(
            {column: [label for value in values for label in value]},
            features=hf.Features({column: splits[split].features[column].feature}),
        )
        for split, values in lists.items()
    }
    names, numbered = number_labels(flat, column)
    found = {}
    for split, values in lists.items():
        numbers = iter(numbered[split])
        found[split] = [tuple(sorted({next(numbers) for _ in value})) for value in values]
    return names, found


def rarest_labels(sets: Sequence[tuple[int, ...]], num_classes: int) -> list[int]:
    """Return the label of each row that is rarest among all rows: by it, rows of several labels are stratified.

    Args:
        sets: The labels of each row.
        num_classes: K.

    Returns:
        As many integers, K for a row without labels.

    Example:
        >>> rarest_labels([(0,), (0, 1), ()], 2)
        [0, 1, 2]
    """
    counts = Counter(label for labels in sets for label in labels)
    return [min(labels, key=lambda label: (counts[label], label), default=num_classes) for labels in sets]


def _declared_names(features: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the class names that the table declares, or ``None``."""
    declared = {split: getattr(feature, "names", None) for split, feature in features.items()}
    for split, names in declared.items():
        if names != declared["train"]:
            raise ValueError(
                "every split must declare the same classes in the same order; train has"
                f" {declared['train']}, {split} has {names}"
            )
    return None if declared["train"] is None else tuple(declared["train"])


def _checked_values(values: list[Any], limit: float, split: str) -> list[Any]:
    """Return the labels of a split if all of them are strings or integers in ``[0, limit)``."""
    odd = [value for value in values if not isinstance(value, int | str)]
    wrong = odd[:1] or sorted({value for value in values if isinstance(value, int) and not 0 <= value < limit})
    if wrong:
        raise ValueError(
            f"labels must be strings or lie in [0, {limit}), the {split} split has {', '.join(map(repr, wrong[:5]))};"
            " leave rows without a label out"
        )
    return values
