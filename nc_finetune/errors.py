"""Messages shared by every public boundary."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class TrainingStoppedError(RuntimeError):
    """Training has ended early for a reason that the message tells: no defect of the program."""


class UnavailableError(RuntimeError):
    """Something is needed that cannot be had from here, such as weights of the hub: no defect of the program."""


class DataWarning(UserWarning):
    """Something about the images that whoever reads a result should know; a benchmark notes it down."""


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


def check_name(kind: str, given: str, valid: Iterable[str]) -> None:
    """Refuse a name that is not among the valid ones.

    Args:
        kind: What the name stands for.
        given: The name that came.
        valid: Every name that is accepted.

    Raises:
        ValueError: That of :func:`unknown_name`.

    Example:
        >>> check_name("split", "val", ("train", "val", "test"))
    """
    if given not in (names := list(valid)):
        raise unknown_name(kind, given, names)


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


def unsafe_content(error: Exception) -> str:
    r"""Say in a few words why ``torch.load(..., weights_only=True)`` refused a file.

    Its own text goes on to advise loading the file with pickle.

    Args:
        error: What was raised.

    Returns:
        What the file names, or else the first line of the error.

    Example:
        >>> unsafe_content(ValueError("Weights only load failed. ...\n Unsupported GLOBAL os.system whose module ..."))
        'it names os.system, which could run code'
    """
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"it names {found[1]}, which could run code" if found else str(error).partition("\n")[0]
