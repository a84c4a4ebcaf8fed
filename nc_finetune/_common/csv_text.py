"""CSV that means in a spreadsheet what it says."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
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


def class_headings(names: Sequence[str], others: Iterable[str]) -> list[str]:
    """Head a column a class so that no two columns have one name: what another column has gets ``class`` before it.

    Args:
        names: Of the classes.
        others: Headings of the other columns.

    Returns:
        As many, each a :func:`plain_cell`.

    Example:
        >>> class_headings(["cat", "set", "class set"], ["file", "set"])
        ['cat', 'class class set', 'class set']
    """
    wanted: list[str] = [plain_cell(name) for name in names]
    standing = set(others)
    taken = standing | set(wanted)
    found = []
    for heading in wanted:
        if heading in standing:
            while heading in taken:
                heading = f"class {heading}"
        found.append(heading)
        standing.add(heading)
        taken.add(heading)
    return found


def joined_names(names: Iterable[str]) -> str:
    r"""Write names into one cell, divided by ``|``; a ``|`` or a backslash of a name has a backslash before it.

    Example:
        >>> joined_names(["cat", "a|b"])
        'cat|a\\|b'
        >>> next(csv.reader([r"cat|a\|b"], delimiter="|", escapechar="\\", quoting=csv.QUOTE_NONE))
        ['cat', 'a|b']
    """
    return "|".join(name.replace("\\", r"\\").replace("|", r"\|") for name in names)


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
