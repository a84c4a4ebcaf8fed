"""A folder of images whose labels are in a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from nc_finetune.data.image_files import is_image_file
from nc_finetune.errors import unknown_name

if TYPE_CHECKING:
    import datasets

FILE_COLUMNS = ("file_name", "filename", "file", "path", "image_path", "image", "image_id", "id")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "tags")
SPLIT_COLUMN = "split"
LABEL_TABLES = ("labels.csv", "metadata.csv")
# Divides the labels of one image.
SEPARATOR = "|"


def find_label_tables(files: Sequence[Path], split_names: dict[str, tuple[str, ...]]) -> dict[str, Path]:
    """Return the tables of labels at the top of a folder: ``labels.csv`` or ``metadata.csv``, or one a split.

    Args:
        files: All files of the folder, relative to it.
        split_names: What each split may be called.

    Returns:
        The table of ``"train"``, ``"val"`` and ``"test"``; one that is not of a split is under ``""``.
    """
    tables = {file.name.lower(): file for file in files if len(file.parts) == 1 and file.suffix.lower() == ".csv"}
    for name in LABEL_TABLES:
        if name in tables:
            return {"": tables[name]}
    named = {
        split: next((tables[f"{alias}.csv"] for alias in aliases if f"{alias}.csv" in tables), None)
        for split, aliases in split_names.items()
    }
    found = {split: table for split, table in named.items() if table is not None}
    return found if "train" in found else {}


class LabelTable:
    """Read images and labels by the lines of CSV files.

    The first line names the columns, of which one holds files, relative to the folder, and one holds labels, divided by
    ``|`` where an image has several. A column ``split`` may name the split. Comma, semicolon or tab divides columns.
    A file may lack its ending, and stand in any folder below where its name is the only one of its kind.

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

    def read(self, tables: dict[str, Path]) -> dict[str, datasets.Dataset]:
        """Return HF datasets by split.

        Args:
            tables: Path of the table by split; that under ``""`` may name splits itself.

        Raises:
            ValueError: If a table cannot be read, lacks a column, or names a file that is not there, or not below the
                folder, or twice.
        """
        import datasets as hf

        rows: dict[str, list[tuple[str, str]]] = {}
        for split, table in tables.items():
            for named, file, label in self._lines(table):
                rows.setdefault(split or named, []).append((file, label))
        several = any(SEPARATOR in label for group in rows.values() for _, label in group)
        names = sorted({name for group in rows.values() for _, label in group for name in _names(label, several)})
        one = hf.ClassLabel(names=names)
        image, label = (given or name for given, name in zip(self.columns, ("image", "label"), strict=True))
        features = hf.Features({image: hf.Image(), label: hf.List(one) if several else one})
        found: dict[str, datasets.Dataset] = {}
        for split, group in rows.items():
            labels: list[Any] = [_names(text, True) if several else text for _, text in group]
            found[split] = hf.Dataset.from_dict({image: [file for file, _ in group], label: labels}, features=features)
        return found

    def _lines(self, table: Path) -> list[tuple[str, str, str]]:
        """Return split, path and label of each line."""
        header, lines = _read_csv(table)
        image = _column(table, header, self.columns[0], FILE_COLUMNS, "image")
        label = _column(table, header, self.columns[1], LABEL_COLUMNS, "label")
        split = header.index(SPLIT_COLUMN) if SPLIT_COLUMN in header else None
        seen: set[str] = set()
        found = []
        for number, line in enumerate(lines, start=2):
            where = f"{table}, line {number}"
            if len(line) != len(header):
                raise ValueError(f"{where}: {len(line)} cells where the first line has {len(header)}; mend it")
            path = str(self.folder / self._file(line[image], where))
            if path in seen:
                raise ValueError(f"{where}: {line[image]!r} is there twice; keep one line (several labels: a|b)")
            if not line[label].strip():
                raise ValueError(f"{where}: {line[image]!r} has no label; give one, or remove the line")
            seen.add(path)
            found.append(("train" if split is None else line[split].strip() or "train", path, line[label].strip()))
        return found

    def _file(self, name: str, where: str) -> Path:
        """Return the image that a cell names."""
        path = PurePosixPath(name.strip().replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{where}: {name!r} is not below {self.folder}; name files relative to it")
        exact = [file for file in self._known.get(str(path), []) if file.as_posix() == str(path)]
        found = exact or self._known.get(str(path), [])
        if len(found) != 1:
            problem = f"may be {found[0]} or {found[1]}" if found else f"is not below {self.folder}"
            raise ValueError(f"{where}: the image {name!r} {problem}; mend the table or the folder")
        return found[0]


def _read_csv(table: Path) -> tuple[list[str], list[list[str]]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is not UTF-8: {error}; save it as UTF-8") from error
    first = text.partition("\n")[0]
    divider = max(",;\t", key=first.count)
    try:
        lines = [line for line in csv.reader(io.StringIO(text), delimiter=divider, strict=True) if line]
    except csv.Error as error:
        raise ValueError(f"{table} is no CSV file: {error}") from error
    if len(lines) < 2:
        raise ValueError(f"{table} is empty: expected a line with the names of columns, and one for each image")
    return [name.strip() for name in lines[0]], lines[1:]


def _column(table: Path, header: list[str], given: str | None, usual: Sequence[str], kind: str) -> int:
    if given is not None:
        if given not in header:
            raise unknown_name(f"{kind} column", given, header)
        return header.index(given)
    lower = [name.lower() for name in header]
    found = next((lower.index(name) for name in usual if name in lower), None)
    if found is None:
        raise ValueError(
            f"cannot tell the {kind} column of {table} among {', '.join(header)}; call it {usual[0]!r}"
            f" or pass {kind}_column="
        )
    return found


def _names(label: str, several: bool) -> list[str]:
    return [part.strip() for part in label.split(SEPARATOR) if part.strip()] if several else [label]
