"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def check_file(path: Path) -> None:
    """Find out, as before long work, whether a file may lie somewhere, as far as folders say.

    Args:
        path: Where it goes.

    Raises:
        IsADirectoryError: If a folder is there.
        NotADirectoryError: If what it is to lie in is a file.
    """
    if path.is_dir():
        raise IsADirectoryError(f"a file is written, and {path} is a folder; name a file in it")
    above = next((folder for folder in path.parents if folder.exists()), path.parent)
    if above.exists() and not above.is_dir():
        raise NotADirectoryError(f"{path} is to lie in {above}, which is a file; name another folder")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part of it.

    Args:
        path: Where the data goes; its folder is made.
        data: What to write.

    Raises:
        OSError: If it cannot be written there.
    """
    check_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not a file of tempfile: those are for their owner alone, and results and reports are there to be shared.
    # Its name is short whatever that of the file is: names are limited to 255 bytes.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Write text as UTF-8 through :func:`write_atomically`.

    Args:
        path: Where the text goes; its folder is made.
        text: What to write.
    """
    write_atomically(path, text.encode("utf-8"))
