"""Files below a folder, in whatever way links connect it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


def visible_files(folder: Path) -> list[Path]:
    """List all files below a folder, relative to it, in an order that is the same on every machine.

    Args:
        folder: The folder. Links are followed but for those to folders that lead back to the link, be it over further
            links: what is behind them is listed where it is. Hidden files and folders are left out.

    Raises:
        OSError: If a part of it cannot be listed.
        ValueError: If the name of a file is not UTF-8, or that of the folder: tables and reports could not hold it.
    """
    found = list(_files_below(folder.resolve(), Path(), {}))
    for file in found:
        try:
            str(folder / file).encode()
        except UnicodeEncodeError as error:
            name = os.fsencode(folder / file).decode("utf-8", "backslashreplace")
            raise ValueError(f"the name of the file {name} is not UTF-8; rename it, or the folder that is") from error
    return found


@dataclass(frozen=True)
class _Content:
    files: list[str]
    folders: dict[str, Path]  # where each is
    links: frozenset[str]  # those of the folders that are links


def _files_below(real: Path, inside: Path, known: dict[Path, _Content]) -> Iterator[Path]:
    content = _content(real, known)
    yield from (inside / name for name in content.files)
    for name, target in content.folders.items():
        if name not in content.links or not _leads_to(target, real, known):
            yield from _files_below(target, inside / name, known)


def _content(real: Path, known: dict[Path, _Content]) -> _Content:
    """List one folder, once."""

    def fail(error: OSError) -> None:
        raise error

    if real not in known:
        _, folders, files = next(os.walk(real, onerror=fail))
        visible = sorted(name for name in folders if not name.startswith("."))
        links = frozenset(name for name in visible if (real / name).is_symlink())
        known[real] = _Content(
            sorted(name for name in files if not name.startswith(".")),
            {name: (real / name).resolve() if name in links else real / name for name in visible},
            links,
        )
    return known[real]


def _leads_to(start: Path, goal: Path, known: dict[Path, _Content]) -> bool:
    """Tell whether a folder is, holds or links to another, over any number of folders and links."""
    if start == goal or start in goal.parents:
        return True
    seen, waiting = {start}, [start]
    while waiting:
        here = waiting.pop()
        if here == goal:
            return True
        new = set(_content(here, known).folders.values()) - seen
        seen |= new
        waiting += new
    return False
