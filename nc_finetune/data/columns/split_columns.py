"""Tables that say themselves which split a row is in: in a column, or by the folder of its image."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from nc_finetune.data.columns.split_names import UNLABELLED, camel_words, plain, split_in, split_of, words_of
from nc_finetune.errors import DataWarning

if TYPE_CHECKING:
    import datasets

# A column that readers of folders add: the split of the folder that an image is in, or "". A table may bring it along.
FOLDER_SPLIT = "__folder_split__"
SPLIT_COLUMNS = {"split", "splits", "datasplit", "datasetsplit", "splitname", "subset", "partition"}
# Columns of truth values: the split where they are true, and where not.
_FLAGS = {
    **dict.fromkeys(("isvalid", "isval", "isvalidation"), ("val", "train")),
    "istest": ("test", "train"),
    **dict.fromkeys(("istrain", "istraining", "istrainingimage"), ("train", "test")),
}
# Columns of cross-validation, which do not say what is held out.
_FOLDS = ("fold", "folds", "kfold", "cvfold")
# A column of splits has few values; of more, as in captions, single words say nothing.
_FEW = 12
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def divide_by_columns(
    splits: Mapping[str, datasets.Dataset], taken: set[str], only: bool
) -> dict[str, datasets.Dataset]:
    """Give each row to the split that its table says.

    A column is one of splits by its name (``split``, ``subset``, ``partition``, ``is_valid``, in any case), or where
    ``train`` and another split are among its values. The folder of an image counts where nothing else says a split.

    Args:
        splits: HF datasets by split, ``"train"`` among them.
        taken: Columns that hold something else: images and labels.
        only: Whether the source has one table, whose name says nothing.

    Returns:
        HF datasets by split, of which ``"unlabelled"`` is one; the rows of each in the order that they had.

    Raises:
        ValueError: If a value stands for no split, or two things that say a split contradict each other: an image that
            one of them holds out would be trained on.
    """
    parts: dict[str, list[datasets.Dataset]] = {}
    for split, rows in splits.items():
        if split == UNLABELLED:
            parts.setdefault(split, []).append(rows)
            continue
        where = "the table" if only else f"the {split} split"
        said = column_splits({name: _texts(rows, name) for name in _candidates(rows, taken)}, where)
        folders = _folder_splits(rows, where, sure=said is not None or not only)
        own = None if only else split
        groups: dict[str, list[int]] = {}
        for row in range(len(rows)):
            in_column = None if said is None else said[row]
            groups.setdefault(_settled(own, in_column, folders[row], f"row {row} of {where}"), []).append(row)
        for name, chosen in groups.items():
            parts.setdefault(name, []).append(rows if len(chosen) == len(rows) else rows.select(chosen))
    return {name: _joined(found) for name, found in parts.items()}


def column_splits(columns: Mapping[str, Sequence[str]], where: str) -> list[str] | None:
    """Return the split of each row that the columns of a table say; ``None`` where none is about splits.

    Raises:
        ValueError: If a cell stands for no split, or two columns are about splits and differ.

    Example:
        >>> column_splits({"Subset": ["Train ", "holdout"], "breed": ["pug", "lab"]}, "the table")
        ['train', 'test']
    """
    found = {name: said for name, cells in columns.items() if (said := _splits_of(name, cells, where)) is not None}
    if len({tuple(said) for said in found.values()}) > 1:
        raise ValueError(
            f"the columns {' and '.join(map(repr, found))} of {where} say different splits; keep one of them, 'split'"
        )
    return next(iter(found.values()), None)


def is_split_column(name: str, classes: Sequence[str]) -> bool:
    """Tell a column of declared classes that are splits from one of labels.

    Example:
        >>> is_split_column("Split", ["a", "b"]), is_split_column("part", ["train", "Test"])
        (True, True)
    """
    return "".join(words_of(name)) in SPLIT_COLUMNS or all(split_of(one) for one in classes)


def folder_split(path: PurePosixPath, where: str) -> str:
    """Return the split that a folder of an image is named like, or ``""``.

    Raises:
        ValueError: If folders above one another are named like different splits.

    Example:
        >>> folder_split(PurePosixPath("images/Validation/1.png"), "row 0"), folder_split(PurePosixPath("a/1.png"), "")
        ('val', '')
    """
    named = {split for part in path.parts[:-1] if (split := split_of(part))}
    if len(named) > 1:
        raise ValueError(f"{where}: the folders of {path} are named like two splits; rename one of them")
    return named.pop() if named else ""


def _splits_of(name: str, cells: Sequence[str], where: str) -> list[str] | None:
    key = "".join(words_of(name))
    kinds = {cell: plain(cell) for cell in set(cells)}
    if key in _FLAGS and {kind for kind in kinds.values() if kind} <= set(_TRUTH):
        if "" in kinds.values():
            raise ValueError(f"the column {name!r} of {where} has empty cells; fill them in")
        true, false = _FLAGS[key]
        return [true if _TRUTH[kinds[cell]] else false for cell in cells]
    meant = {cell: split_of(cell) for cell in kinds if kinds[cell]}
    known, unknown = ({cell for cell in meant if bool(meant[cell]) is told} for told in (True, False))
    named = key in SPLIT_COLUMNS and bool(meant)
    values = {meant[cell] for cell in known}
    hints = {split for cell in unknown if len(meant) <= _FEW and (split := split_in(camel_words(cell)))}
    if not named and not (
        "train" in values and len(values | hints) > 1 and len(unknown) <= len(known) + 2 * bool(hints)
    ):
        if key in _FOLDS:
            said = f"the column {name!r} of {where} is not used: no split is told by it"
            warnings.warn(said, DataWarning, stacklevel=2)
        return None
    if unknown:
        raise ValueError(
            f"the column {name!r} of {where} has {', '.join(map(repr, sorted(unknown)[:5]))}, which stands for no"
            " split; write train, val or test, or take the column out"
        )
    if "train" in values and len(meant) < len(kinds):
        row = next(row for row, cell in enumerate(cells) if not kinds[cell])
        raise ValueError(f"row {row} of {where} has no split in the column {name!r}; write train, val or test")
    # Where only images that are held out are marked, the others are for training.
    return [meant.get(cell) or "train" for cell in cells]


def _settled(own: str | None, in_column: str | None, folder: str, where: str) -> str:
    """Return the split of a row; what says that it is held out is never overruled."""
    if own and in_column and own not in ("train", in_column):
        raise ValueError(f"{where} is in the {own} split and its column says {in_column}; mend one of them")
    said = in_column or own
    if said == "train" and folder not in ("", "train"):
        raise ValueError(
            f"{where} is said to be for training, and its image is in a folder for {folder}; mend the table, or rename"
            " the folder"
        )
    return said or folder or "train"


def _folder_splits(rows: datasets.Dataset, where: str, sure: bool) -> Sequence[str]:
    """Return the split of the folder of each image, ``""`` where there is none."""
    if FOLDER_SPLIT not in rows.features:
        return [""] * len(rows)
    found: list[str] = list(rows[FOLDER_SPLIT])
    if sure or all(found) or not any(found):
        return found
    if "train" not in (named := set(found) - {""}):
        # Images that are held out have a folder of their own, the others stand elsewhere.
        return found
    raise ValueError(
        f"row {found.index('')} of {where} is in no folder of a split, others are in folders for"
        f" {', '.join(sorted(named))}; say the split of each row in a column 'split'"
    )


def _candidates(rows: datasets.Dataset, taken: set[str]) -> list[str]:
    kinds = ("string", "large_string", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    return [
        name
        for name, feature in rows.features.items()
        if name not in taken and name != FOLDER_SPLIT and getattr(feature, "dtype", None) in kinds
    ]


def _texts(rows: datasets.Dataset, name: str) -> list[str]:
    names = getattr(rows.features[name], "names", None)
    cells = ["" if cell is None else cell for cell in rows[name]]
    return [names[cell] if names and cell != "" else str(cell) for cell in cells]


def _joined(parts: list[datasets.Dataset]) -> datasets.Dataset:
    import datasets as hf

    return parts[0] if len(parts) == 1 else hf.concatenate_datasets(parts)
