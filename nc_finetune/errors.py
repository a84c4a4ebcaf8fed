"""Messages shared by every public boundary."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrainingStoppedError(RuntimeError):
    """Training has ended early for a reason that the message tells: no defect of the program."""


def unknown_name(kind: str, given: str, valid: Iterable[str]) -> ValueError:
    """Build the error for a name that is not among the valid ones: near matches first, then all of them.

    Args:
        kind: What the name stands for, e.g. ``"layer"``.
        given: The name that came.
        valid: Every name that would have been accepted.

    Returns:
        A ``ValueError`` for the caller to raise.

    Example:
        >>> print(unknown_name("layer", "blocks.2", ["stem", "blocks.0", "blocks.1"]))
        unknown layer 'blocks.2'; did you mean 'blocks.1' or 'blocks.0'? Valid: stem, blocks.0, blocks.1
    """
    names = list(valid)
    near = difflib.get_close_matches(given, names, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return ValueError(f"unknown {kind} {given!r}{hint} Valid: {', '.join(names)}")


def missing_extra(package: str, extra: str, purpose: str) -> ImportError:
    """Build the error for an optional dependency that is not installed.

    Args:
        package: The package that could not be imported.
        extra: The extra of nc-finetune that brings it.
        purpose: What it is needed for.

    Returns:
        An ``ImportError`` for the caller to raise.

    Example:
        >>> print(missing_extra("altair", "report", "writing reports"))
        writing reports needs the package 'altair': pip install "nc-finetune[report]"
    """
    return ImportError(f'{purpose} needs the package {package!r}: pip install "nc-finetune[{extra}]"')
