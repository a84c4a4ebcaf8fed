"""From a column of labels to class names and integers."""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Integral
from typing import TYPE_CHECKING, Any

from nc_finetune.data.columns.split_names import plain
from nc_finetune.errors import DataWarning

if TYPE_CHECKING:
    import datasets

# What stands for "nobody has labelled this" where labels are numbers, as in the test splits of the hub.
NO_LABEL = -1
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")


def number_labels(
    splits: dict[str, datasets.Dataset], column: str
) -> tuple[tuple[str, ...], dict[str, list[int | None]]]:
    """Name the classes and number the labels, in the same way in every split.

    A row has no label where the cell is null, not a number, an empty text, or -1.

    Args:
        splits: HF datasets by split, ``"train"`` among them.
        column: Name of their column of labels: declared classes, truth values, strings, or whole numbers of any type.
            Where the table declares no classes, they are the labels that occur in any split, in rising order; strings
            that are whole numbers in the order of the numbers.

    Returns:
        K names, and by split the label of each row in ``[0, K)``, or ``None``.

    Raises:
        ValueError: If a label is something else, splits differ in what a label is, or classes of two splits are
            called the same but for case, spaces, hyphens or full width.

    Example:
        >>> import datasets
        >>> number_labels({"train": datasets.Dataset.from_dict({"label": [30, 4, -1]})}, "label")
        (('4', '30'), {'train': [1, 0, None]})
    """
    declared = _declared_names({split: rows.features[column] for split, rows in splits.items()})
    values = {split: [_value(value, split) for value in rows[column][:]] for split, rows in splits.items()}
    if declared is not None:
        return declared, {split: _declared(group, declared, split) for split, group in values.items()}
    values = _numbers_where_all_are(values)
    kinds = {isinstance(value, str) for group in values.values() for value in group if value is not None}
    if len(kinds) > 1:
        raise ValueError(f"column {column!r} must hold integers in every split or strings in every split")
    occurring = {split: {value for value in group if value is not None} for split, group in values.items()}
    for split, group in occurring.items():
        if negative := sorted(value for value in group if not isinstance(value, str) and value < 0):
            raise _odd(negative, split, math.inf)
    check_spellings({split: {value for value in group if isinstance(value, str)} for split, group in occurring.items()})
    known = in_order(set().union(*occurring.values()))
    number = {value: label for label, value in enumerate(known)}
    numbered = {split: [None if value is None else number[value] for value in group] for split, group in values.items()}
    return tuple(map(str, known)), numbered


def number_label_sets(
    splits: dict[str, datasets.Dataset], column: str
) -> tuple[tuple[str, ...], dict[str, list[tuple[int, ...] | None]]]:
    """Do what :func:`number_labels` does where each row has a list of labels, which may be empty.

    Returns:
        K names, and by split the labels of each row, in rising order, each once; ``None`` where the cell is null.

    Raises:
        ValueError: As there, and if a list holds what stands for no label.

    Example:
        >>> import datasets
        >>> number_label_sets({"train": datasets.Dataset.from_dict({"tags": [["b", "a"], [], ["b"]]})}, "tags")
        (('a', 'b'), {'train': [(0, 1), (), (1,)]})
    """
    import datasets as hf

    lists = {split: rows[column][:] for split, rows in splits.items()}
    flat = {
        split: hf.Dataset.from_dict(
            {column: [label for value in values if value is not None for label in value]},
            features=hf.Features({column: splits[split].features[column].feature}),
        )
        for split, values in lists.items()
    }
    names, numbered = number_labels(flat, column)
    found: dict[str, list[tuple[int, ...] | None]] = {}
    for split, values in lists.items():
        if None in numbered[split]:
            raise ValueError(
                f"a list of labels in the {split} split holds an empty one; a row without labels has an empty list"
            )
        numbers = iter(label for label in numbered[split] if label is not None)
        found[split] = [None if value is None else tuple(sorted({next(numbers) for _ in value})) for value in values]
    return names, found


def is_no_label(value: Any) -> bool:
    """Tell whether a cell says that nobody has labelled its row: null, not a number, an empty text, or -1.

    Example:
        >>> [is_no_label(value) for value in (None, float("nan"), " ", -1, 0, "cat")]
        [True, True, True, True, False, False]
    """
    return value is None or value != value or value == NO_LABEL or (isinstance(value, str) and not value.strip())


def rarest_labels(sets: Sequence[tuple[int, ...]], num_classes: int) -> list[int]:
    """Return the label of each row that is rarest among all rows: by it, rows of several labels are stratified.

    Returns:
        As many integers, K for a row without labels.

    Example:
        >>> rarest_labels([(0,), (0, 1), ()], 2)
        [0, 1, 2]
    """
    counts = Counter(label for labels in sets for label in labels)
    return [min(labels, key=lambda label: (counts[label], label), default=num_classes) for labels in sets]


def check_spellings(names: Mapping[str, set[str]]) -> None:
    """Refuse class names that hardly differ, where one of them has no training images.

    ``Cat`` in one split and ``cat`` in another would be two classes, of which one is never trained. Where both have
    training images, as the letters of a data set of handwriting, they stay two, with a warning.

    Args:
        names: The class names that occur in each split, ``"train"`` among them.

    Raises:
        ValueError: If names of two splits differ by case, spaces, hyphens, full width or marks of no width alone.

    Example:
        >>> check_spellings({"train": {"cat", "dog"}, "val": {"Cat", "dog"}})
        Traceback (most recent call last):
        ...
        ValueError: the class names 'cat' (train) and 'Cat' (val) hardly differ: ...
    """
    alike: dict[str, list[str]] = {}
    for name in sorted(set().union(*names.values())):
        alike.setdefault(re.sub(r"[\s_-]+", " ", plain(name)).strip(), []).append(name)
    groups = [group for group in alike.values() if len(group) > 1]
    for group in groups:
        if not names["train"].issuperset(group):
            # The training split's own name first.
            group.sort(key=lambda name: name not in names["train"])
            said = [f"{name!r} ({', '.join(split for split in names if name in names[split])})" for name in group]
            raise ValueError(
                f"the class names {' and '.join(said)} hardly differ: case, spaces, hyphens and full width do not make"
                " a class; give them one name"
            )
    if groups:
        shown = "; ".join(" and ".join(map(repr, group)) for group in groups[:5])
        warnings.warn(f"class names that hardly differ stay classes of their own: {shown}", DataWarning, stacklevel=2)


def in_order(values: set[Any]) -> list[Any]:
    """Sort labels; strings that are all whole numbers in the order of the numbers.

    Example:
        >>> in_order({"10", "2", "1"}), in_order({"b10", "b2"})
        (['1', '2', '10'], ['b10', 'b2'])
    """
    if all(isinstance(value, str) and value.isascii() and value.isdecimal() for value in values):
        return sorted(values, key=lambda value: (int(value), value))
    return sorted(values)


def _declared_names(features: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the class names that the table declares, or ``None``."""
    declared = {split: getattr(feature, "names", None) for split, feature in features.items()}
    for split, names in declared.items():
        if names != declared["train"] and names is not None:
            raise ValueError(
                "every split must declare the same classes in the same order; train has"
                f" {declared['train']}, {split} has {names}"
            )
    return None if declared["train"] is None else tuple(declared["train"])


def _value(value: Any, split: str) -> Any:
    """Return a string, an integer or, for what stands for no label, ``None``."""
    if is_no_label(value):
        return None
    if isinstance(value, str):
        # One file system writes ä as one character, another as two: the same name.
        return unicodedata.normalize("NFC", value)
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)
    if not isinstance(value, Integral):
        raise _odd([value], split, math.inf)
    return value


def _declared(values: list[Any], names: tuple[str, ...], split: str) -> list[int | None]:
    """Return numbers of declared classes; a split that declares none may name them."""
    number = {name: label for label, name in enumerate(names)}
    found: list[Any] = [number.get(value, value) if isinstance(value, str) else value for value in values]
    wrong = [value for value in found if value is not None and (isinstance(value, str) or not 0 <= value < len(names))]
    if wrong:
        raise _odd(sorted(set(wrong), key=str), split, len(names))
    return found


def _numbers_where_all_are(values: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Turn strings into integers where all are whole numbers and some are written as ``2.0`` or ``-1``.

    pandas writes a column of integers so, once a cell of it is empty; ``2`` and ``2.0`` are no two classes.
    """
    texts = {value for group in values.values() for value in group if isinstance(value, str)}
    if not all(_WHOLE.fullmatch(text.strip()) for text in texts) or all(text.isdecimal() for text in texts):
        return values
    return {
        split: [_value(float(value), split) if isinstance(value, str) else value for value in group]
        for split, group in values.items()
    }


def _odd(values: Sequence[Any], split: str, limit: float) -> ValueError:
    return ValueError(
        f"labels must be strings or lie in [0, {limit}), the {split} split has {', '.join(map(repr, values[:5]))};"
        " leave rows without a label out"
    )
