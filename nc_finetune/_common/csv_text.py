"""CSV that means in a spreadsheet what it says."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

# What a spreadsheet would take for a formula, and run.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def plain_cell(value: Any) -> Any:
    """Make a text stand for itself: an apostrophe keeps a spreadsheet from taking it for a formula.

    Args:
        value: Anything; only texts change.

    Returns:
        The text, on one line of its own; anything else as it is.

    Example:
        >>> plain_cell("=cmd|' /C calc'!A0"), plain_cell("cat"), plain_cell(-1.5)
        ("'=cmd|' /C calc'!A0", 'cat', -1.5)
    """
    if not isinstance(value, str):
        return value
    # The csv module leaves a carriage return without quotes, where a reader takes it for the end of the line.
    return ("'" if value.startswith(_FORMULA) else "") + value.replace("\r", " ")


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Write rows as CSV; names of files and classes are other people's, so each cell is a :func:`plain_cell`.

    Args:
        rows: Their cells, the heading first.

    Returns:
        The text.

    Example:
        >>> print(csv_text([["file", "label"], ["=1+1.jpg", "a,b"]]), end="")
        file,label
        '=1+1.jpg,"a,b"
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(plain_cell, row) for row in rows)
    return text.getvalue()
