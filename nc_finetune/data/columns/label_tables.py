"""A folder of images whose labels are in a CSV or JSON Lines file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from nc_finetune.data._pixels.image_files import is_image_file
from nc_finetune.data.columns.image_columns import FILE_COLUMNS, LABEL_COLUMNS
from nc_finetune.data.columns.split_columns import FOLDER_SPLIT, folder_split
from nc_finetune.data.columns.split_names import plain, split_of
from nc_finetune.data.columns.table_lines import Lines, read_csv, read_jsonl
from nc_finetune.errors import DataWarning, check_name

if TYPE_CHECKING:
    import datasets

USUAL_LABELS = ("label", "labels", "class", "class_name", "category", "target", "tags")
LABEL_TABLES = ("labels", "metadata")
TABLE_ENDINGS = (".csv", ".tsv", ".jsonl")
# Divides the labels of one image.
SEPARATOR = "|"
# Words of a table's name beside that of its split: train_labels.csv.
_TABLE_WORDS = ("_labels", "_metadata", "-labels", "-metadata")


def find_label_tables(files: Sequence[Path]) -> dict[str, Path]:
    """Return the tables of labels of a folder.

    They are ``labels.csv`` or ``metadata.csv`` (or ``.tsv``, ``.jsonl``) at its top; or one a split there, as
    ``train.csv`` and ``test.csv``; or one in each folder of a split, as ``train/metadata.jsonl``.

    Args:
        files: All files of the folder, relative to it.

    Returns:
        The table of each split; one that is not of a split is under ``""``.

    Raises:
        ValueError: If several of them could be meant.
    """
    tables = [file for file in files if file.suffix.lower() in TABLE_ENDINGS]
    top = {file.name.lower(): file for file in tables if len(file.parts) == 1}
    usual = [top[name + ending] for name in LABEL_TABLES for ending in TABLE_ENDINGS if name + ending in top]
    named = {file: _split_of_table(file) for file in top.values() if file not in usual}
    inside = [file for file in tables if len(file.parts) == 2 and file.stem.lower() in LABEL_TABLES]
    below = {file: split_of(file.parts[0]) for file in inside}
    kinds = {
        "": {"": usual[0]} if usual else {},
        "beside one another": _one_a_split(named),
        "in folders of splits": _one_a_split(below),
    }
    found = [group for kind, group in kinds.items() if kind == "" or "train" in group]
    found = [group for group in found if group]
    if len(found) > 1:
        raise ValueError(
            f"{found[0].popitem()[1]} and {found[1].popitem()[1]} could both hold the labels; keep one kind of table"
        )
    if len(usual) > 1:
        warnings.warn(f"labels are read from {usual[0]}, and {usual[1]} is not read", DataWarning, stacklevel=2)
    return found[0] if found else {}


def say_which_are_unread(path: Path, files: Sequence[Path]) -> None:
    """Warn of tables at the top of a folder that name files and labels, though folders are taken for its classes.

    Args:
        path: The folder.
        files: All files of it, relative to it.
    """
    for file in files:
        if len(file.parts) == 1 and file.suffix.lower() in TABLE_ENDINGS and _names_labels(path / file):
            warnings.warn(
                f"{file} names files and labels, and is not read: folders are taken for the classes; for its labels"
                f" call it {LABEL_TABLES[0]}{file.suffix.lower()}, or give {path / file} as the source",
                DataWarning,
                stacklevel=2,
            )


def _names_labels(table: Path) -> bool:
    """Tell a table with a column of files and one of labels by the usual names."""
    try:
        names, _ = _read(table)
    except (ValueError, OSError):  # whatever else it is
        return False
    predicted = "probability" in names  # by `nc-finetune predict`, whose labels nobody means to learn
    return not predicted and all(_has_column(names, None, usual) for usual in (FILE_COLUMNS, USUAL_LABELS))


def _read(table: Path) -> tuple[list[str], Lines]:
    return read_jsonl(table) if table.suffix.lower() == ".jsonl" else read_csv(table)


def _split_of_table(file: Path) -> str | None:
    stem = file.stem.lower()
    return next((split for end in ("", *_TABLE_WORDS) if (split := split_of(stem.removesuffix(end)))), None)


def _one_a_split(tables: Mapping[Path, str | None]) -> dict[str, Path]:
    known = {str(file): split for file, split in tables.items() if split}
    for split in set(known.values()):
        if len(same := [file for file, meant in known.items() if meant == split]) > 1:
            raise ValueError(f"{' and '.join(same)} are both tables of the {split} split; keep one")
    return {split: Path(file) for file, split in known.items()}


@dataclass(frozen=True)
class _Row:
    """A line of a table: the image, its label, and its other cells as text."""

    path: str
    label: Any
    folder_split: str
    others: dict[str, str]


class LabelTable:
    """Read images and labels by the lines of CSV files, or by the objects of JSON Lines files.

    Columns have names, of which one holds files, relative to the folder of the table, and one holds labels; a text
    divides several by ``|``, JSON has a list of them. Other columns are kept: one may name the split, or the group. In
    CSV comma, semicolon or tab divides columns. A file may lack its ending, and stand in any folder below where its
    name is the only one of its kind, or the only one in a folder of the table's split. An image without a label is
    kept, and a table of another split than train needs no column of labels.

    Args:
        folder: Where the images are.
        files: All files below it, relative to it.
        image_column: Column of the files; ``None`` finds it.
        label_column: Column of the labels; ``None`` finds it.
    """

    def __init__(
        self, folder: Path, files: Sequence[Path], image_column: str | None = None, label_column: str | None = None
    ) -> None:
        self.folder = folder
        self.columns = (image_column, label_column)
        self._known: dict[str, list[Path]] = {}
        for file in files:
            whole = file.as_posix()
            # Of another kind, it may be a text of the same name; named in full, it is a bad image.
            names = {whole.removesuffix(file.suffix), file.stem} if is_image_file(file) else set()
            for name in {whole, file.name} | names:
                self._known.setdefault(name, []).append(file)

    def read(self, tables: dict[str, Path], labels_needed: bool = True) -> dict[str, datasets.Dataset]:
        """Return HF datasets by split.

        Args:
            tables: Path of the table by split; that under ``""`` is of none, and comes back as ``"train"``.
            labels_needed: Whether the table of the training images must have a column of labels.

        Raises:
            ValueError: If a table cannot be read, lacks a column, or names a file that is not there, or not below the
                folder, or twice.
        """
        import datasets as hf

        needed = ("", "train") if labels_needed else ()
        groups = {split or "train": self._lines(split, table, split in needed) for split, table in tables.items()}
        every = [row.label for rows in groups.values() for row in rows]
        several = any(isinstance(label, list) or SEPARATOR in str(label) for label in every)
        text = any(isinstance(part, str) for label in every for part in (label if isinstance(label, list) else [label]))
        one = hf.Value("string" if text else "float64")
        image, label = (given or name for given, name in zip(self.columns, ("image", "label"), strict=True))
        others = sorted({name for rows in groups.values() for row in rows for name in row.others} - {image, label})
        features = hf.Features(
            {
                image: hf.Image(),
                label: hf.List(one) if several else one,
                **{name: hf.Value("string") for name in (FOLDER_SPLIT, *others)},
            }
        )
        found: dict[str, datasets.Dataset] = {}
        for split, rows in groups.items():
            columns: dict[str, list[Any]] = {
                image: [row.path for row in rows],
                label: [_label(row.label, several, text) for row in rows],
                FOLDER_SPLIT: [row.folder_split for row in rows],
                **{name: [row.others.get(name, "") for row in rows] for name in others},
            }
            found[split] = hf.Dataset.from_dict(columns, features=features)
        return found

    def _lines(self, split: str, table: Path, needs_labels: bool) -> list[_Row]:
        """Return what each line says."""
        names, lines = _read(table)
        if not lines:
            raise ValueError(f"{table} has no rows: expected one for each image below the names of columns")
        image = _column(table, names, self.columns[0], FILE_COLUMNS, "image")
        label: str | None = None
        if needs_labels or _has_column(names, self.columns[1], USUAL_LABELS):
            label = _column(table, names, self.columns[1], USUAL_LABELS, "label")
        base = PurePosixPath(table.parent.relative_to(self.folder).as_posix())
        seen: set[Path] = set()
        found = []
        for number, cells in lines:
            where = f"{table}, line {number}"
            name = "" if cells[image] is None else str(cells[image])
            file = self._file(name, where, base, split or _split_of_table(table) or "")
            if file in seen:
                raise ValueError(f"{where}: {cells[image]!r} is there twice; keep one line (several labels: a|b)")
            seen.add(file)
            value = None if label is None else _checked_label(cells[label], where)
            others = {
                name: "" if cell is None else str(cell)
                for name, cell in cells.items()
                if name not in (image, label) and not isinstance(cell, list | dict) and not self._is_hidden(name)
            }
            found.append(_Row(str(self.folder / file), value, _folder_of_split(file, value, where), others))
        return found

    def _is_hidden(self, name: str) -> bool:
        """Tell other columns that could be taken for the labels, where nobody has said which they are."""
        return self.columns[1] is None and name in LABEL_COLUMNS

    def _file(self, name: str, where: str, base: PurePosixPath, split: str) -> Path:
        """Return the image that a cell names: relative to the table, or else by a name that is the only one."""
        path = PurePosixPath(name.strip().replace("\\", "/"))
        for whole in (self.folder.absolute(), self.folder.resolve()):
            if path.is_relative_to(whole.as_posix()):
                path, base = path.relative_to(whole.as_posix()), PurePosixPath()
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{where}: {name!r} is not below {self.folder}; name files relative to it")
        beside = self._known.get(str(base / path), [])
        exact = [file for file in beside if file.as_posix() == str(base / path)]
        found = exact or (beside if str(base) != "." else []) or self._known.get(str(path), [])
        if len(found) > 1:
            found = [file for file in found if folder_split(PurePosixPath(file), where) == split != ""] or found
        if len(found) != 1:
            problem = f"may be {found[0]} or {found[1]}" if found else f"is not below {self.folder}"
            raise ValueError(f"{where}: the image {name!r} {problem}; mend the table or the folder")
        return found[0]


def _folder_of_split(file: Path, label: Any, where: str) -> str:
    """Return the split of the folder that an image is in; the folder of a class may be called ``train``, too."""
    parts = [part for part in file.parts[:-1] if plain(part) != plain(str(label))]
    return folder_split(PurePosixPath(*parts, file.name), where)


def _has_column(names: Sequence[str], given: str | None, usual: Sequence[str]) -> bool:
    return given in names if given is not None else any(name.lower() in usual for name in names)


def _column(table: Path, names: Sequence[str], given: str | None, usual: Sequence[str], kind: str) -> str:
    if given is not None:
        check_name(f"{kind} column", given, names)
        return given
    lower = {name.lower(): name for name in reversed(names)}
    found = next((lower[name] for name in usual if name in lower), None)
    if found is None:
        raise ValueError(
            f"cannot tell the {kind} column of {table} among {', '.join(names)}; call it {usual[0]!r}"
            f" or pass {kind}_column=, which is --{kind}-column on the command line"
        )
    return found


def _checked_label(label: Any, where: str) -> Any:
    parts = label if isinstance(label, list) else [label]
    if any(isinstance(part, list | dict) for part in parts) or (isinstance(label, list) and None in parts):
        raise ValueError(f"{where}: the label is {json.dumps(label)}; give a text, a number, or a list of them")
    return label


def _label(label: Any, several: bool, text: bool) -> Any:
    """Return a label, or a list of them, of the type that all have; ``None`` where there is none."""
    if label is None or (isinstance(label, str) and not label.strip()):
        return None
    if not several:
        return str(label) if text else label
    parts = label if isinstance(label, list) else str(label).split(SEPARATOR)
    return [str(part).strip() for part in parts if str(part).strip()] if text else parts
