"""Images that do not decode: which they are, why, and where it is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nc_finetune._common.atomic_files import write_text_atomically
from nc_finetune._common.csv_text import csv_text
from nc_finetune.data.sources.tables import EncodedImages
from nc_finetune.errors import DataWarning

OnBadImage = Literal["raise", "skip"]
Decode = Callable[[dict[str, Any]], Tensor]


@dataclass(frozen=True)
class BadImage:
    """An image that was left out.

    Attributes:
        table: The split of the source that it is in.
        row: Its row there.
        path: Its file, where it has one.
        reason: Why it does not decode.
    """

    table: str
    row: int
    path: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.path or f'row {self.row} of {self.table}'}: {self.reason}"


class BadImages:
    """Which images did not decode so far, by the split of the source that they are in.

    Attributes:
        flags: By split, uint8 of shape ``(rows,)`` in shared memory: a process that decodes sets 1 where it cannot.
    """

    def __init__(self, tables: Mapping[str, EncodedImages], decode: Decode) -> None:
        self._tables = tables
        self._decode = decode
        self.flags = {name: shared_flags(len(table.rows)) for name, table in tables.items()}

    def found(self) -> list[BadImage]:
        """Say which images were marked, and why, in the order of the rows; each is decoded once more."""
        marked = ((name, row) for name, flags in self.flags.items() for row in flags.nonzero().flatten().tolist())
        return [described(self._decode, self._tables[name].encoded(row), name, row) for name, row in marked]


def described(decode: Decode, encoded: dict[str, Any], table: str, row: int) -> BadImage:
    """Say why an image does not decode, by decoding it once more.

    Args:
        decode: From an encoded image to a tensor.
        encoded: The image.
        table: Where it is.
        row: Its place there.
    """
    try:
        decode(encoded)
        reason = "did not decode before, and does now"
    except Exception as error:  # every codec has its own kinds
        reason = str(error)
    return BadImage(table, row, encoded["path"], reason)


def report_bad_images(found: Sequence[BadImage], path: Path | None) -> None:
    """Warn of images that were left out, if there are any, and list them in a CSV file."""
    if not found:
        return
    first = "\n".join(f"  {bad}" for bad in found[:3])
    warnings.warn(f"left out {len(found)} images that do not decode:\n{first}", DataWarning, stacklevel=3)
    if path is not None:
        write_bad_images(path, found)


def decoded(decode: Decode, encoded: dict[str, Any], name: str) -> Tensor:
    """Decode an image.

    Raises:
        ValueError: If it does not decode; the error calls it by its name.
    """
    try:
        return decode(encoded)
    except Exception as error:  # every codec has its own kinds
        raise ValueError(
            f"the {name} does not decode: {error}; repair or remove it, or leave it out by"
            " on_bad_image='skip', which is --on-bad-image skip on the command line"
        ) from error


def shared_flags(size: int) -> Tensor:
    """Return uint8 zeros that worker processes write to, and their parent reads."""
    flags: Tensor = torch.zeros(size, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    return flags


def write_bad_images(path: Path, bad: Sequence[BadImage]) -> None:
    """Write a CSV file with a line for each image that was left out."""
    lines = [[image.table, image.row, image.path, image.reason] for image in bad]
    write_text_atomically(path, csv_text([["split", "row", "path", "reason"], *lines]))
