"""Images by their content: which are the same file, whatever they are called and wherever they stand."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nc_finetune.data.sources.tables import ImageTable


@dataclass(frozen=True)
class Duplicate:
    """One image that is there twice.

    Attributes:
        first: The split and the row of its table where it stands first.
        second: The split and the row where it stands again.
        same_label: Whether both have the same label.
        files: Both files; empty where an image is in the table itself.
    """

    first: tuple[str, int]
    second: tuple[str, int]
    same_label: bool
    files: tuple[str, str]

    def __str__(self) -> str:
        label = "" if self.same_label else ", with another label"
        pairs = zip(self.files, (self.first, self.second), strict=True)
        return " = ".join(f"{file or f'row {row}'} ({split})" for file, (split, row) in pairs) + label


def content_hash(encoded: Mapping[str, Any]) -> str:
    """Hash the file of an image, as it is: the same picture saved twice has two hashes.

    Returns:
        BLAKE2b of 64 bits in hexadecimal; ``""`` where there is no image, or none that can be read.
    """
    content = encoded["bytes"]
    if content is None:
        if encoded["path"] is None or not Path(encoded["path"]).is_file():
            return ""
        try:
            content = Path(encoded["path"]).read_bytes()
        except OSError:  # a bad image, which on_bad_image deals with
            return ""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def row_hashes(table: ImageTable, rows: Sequence[int]) -> list[str]:
    """Return the hash of each row of a table; see :func:`content_hash`."""
    return [content_hash(table.encoded(row)) for row in rows]


Splits = Mapping[str, tuple[ImageTable, Sequence[int]]]


def find_duplicates(splits: Splits) -> list[Duplicate]:
    """Find images that are in more than one split.

    Only files of a size that occurs in two splits are read.

    Returns:
        A line for each row that stands in an earlier split, too.
    """
    sizes = {split: {row: _size(table.encoded(row)) for row in rows} for split, (table, rows) in splits.items()}
    known: dict[str, tuple[str, int]] = {}
    found = []
    for split, (table, rows) in splits.items():
        elsewhere = {size for other, group in sizes.items() if other != split for size in group.values()}
        here = []
        for row in rows:
            if sizes[split][row] not in elsewhere or not (digest := content_hash(table.encoded(row))):
                continue
            if digest in known:
                found.append(_duplicate(splits, known[digest], (split, row)))
            else:
                here.append((digest, (split, row)))
        known.update(reversed(here))
    return found


def find_copies(splits: Splits) -> list[Duplicate]:
    """Find images that are more than once in one split.

    Only files of a size that occurs twice there are read.

    Returns:
        A line for each row that stands in the same split before.
    """
    found = []
    for split, (table, rows) in splits.items():
        sizes = {row: _size(table.encoded(row)) for row in rows}
        often, known = Counter(sizes.values()), dict[str, int]()
        for row in rows:
            if often[sizes[row]] < 2 or not (digest := content_hash(table.encoded(row))):
                continue
            if (first := known.setdefault(digest, row)) != row:
                found.append(_duplicate(splits, (split, first), (split, row)))
    return found


def _duplicate(splits: Splits, first: tuple[str, int], second: tuple[str, int]) -> Duplicate:
    places = [(splits[split][0], row) for split, row in (first, second)]
    one, other = (table.labels_of(row) for table, row in places)
    files = [str(table.encoded(row)["path"] or "") for table, row in places]
    return Duplicate(first, second, one == other, (files[0], files[1]))


def _size(encoded: Mapping[str, Any]) -> int:
    if encoded["bytes"] is not None:
        return len(encoded["bytes"])
    try:
        return Path(encoded["path"] or "").stat().st_size
    except OSError:
        return 0
