"""The lines of CSV and JSON Lines files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The number of each line, and its cells by the names of the columns.
Lines = list[tuple[int, dict[str, Any]]]


def _read_text(table: Path) -> str:
    try:
        return table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is not UTF-8: {error}; save it as UTF-8") from error


def read_csv(table: Path) -> tuple[list[str], Lines]:
    """Return the names of the columns, and the number and the cells of each line below them, if there are any.

    Lines without anything in any cell, as spreadsheets leave them behind, are left out.
    """
    text = _read_text(table)
    first = text.partition("\n")[0]
    divider = max(",;\t", key=first.count)
    try:
        lines = [(number, line) for number, line in _rows(text, divider) if any(map(str.strip, line))]
    except csv.Error as error:
        raise ValueError(f"{table} is no CSV file: {error}") from error
    if not lines:
        raise ValueError(f"{table} is empty: expected a line with the names of columns, and one for each image")
    names = [name.strip() for name in lines[0][1]]
    if doubled := [name for name in names if name and names.count(name) > 1]:
        raise ValueError(f"{table} has two columns {doubled[0]!r}; rename one")
    for number, line in lines[1:]:
        if len(line) != len(names):
            raise ValueError(
                f"{table}, line {number}: {len(line)} cells where the first line has {len(names)}; mend it"
            )
    return names, [
        (number, dict(zip(names, (cell.strip() for cell in line), strict=True))) for number, line in lines[1:]
    ]


def _rows(text: str, divider: str) -> Iterator[tuple[int, list[str]]]:
    """Return rows, each with the line of the file that it begins in: cells in quotes may have several."""
    reader = csv.reader(io.StringIO(text), delimiter=divider, strict=True)
    first = 1
    for row in reader:
        yield first, row
        first = reader.line_num + 1


def read_jsonl(table: Path) -> tuple[list[str], Lines]:
    """Return the names of all keys, and the number and the values of each line."""
    found: Lines = []
    for number, line in enumerate(_read_text(table).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{table}, line {number} is no JSON: {error}; mend it") from error
        if not isinstance(value, dict):
            raise ValueError(f"{table}, line {number} is no JSON object; write one for each image")
        found.append((number, value))
    if not found:
        raise ValueError(f"{table} is empty: expected a line with a JSON object for each image")
    names = list(dict.fromkeys(name for _, value in found for name in value))
    return names, [(number, {name: value.get(name) for name in names}) for number, value in found]
