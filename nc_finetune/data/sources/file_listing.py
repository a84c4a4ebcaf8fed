"""Files below a folder, in whatever way links connect it, and those of them that were not read."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nc_finetune.data._pixels.image_files import is_image_file, looks_like_an_image
from nc_finetune.data.columns.label_tables import find_label_tables
from nc_finetune.data.sources.tables import EncodedImages

# What file managers leave in every folder.
_CLUTTER = ("thumbs.db", "desktop.ini")
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".tar")


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


@dataclass(frozen=True)
class LeftOut:
    """What was left out of a folder; its text says so in a sentence.

    Attributes:
        files: Files that were left out, relative to the folder.
        lost: Folders of which nothing was read, classes perhaps.

    Example:
        >>> str(LeftOut.of([Path("cat/1.svg"), Path("cat/2.svg"), Path("dog/1.png")], [Path("dog/1.png")]))
        "2 files were left out (2 .svg), e.g. cat/1.svg, cat/2.svg; nothing was read from 'cat'; convert images of..."
    """

    files: tuple[Path, ...] = ()
    lost: tuple[str, ...] = ()

    @classmethod
    def of(cls, files: Sequence[Path], used: Iterable[Path], are_classes: bool | None = None) -> LeftOut:
        """Compare what there is with what was read.

        Images count, and where folders are classes every file in them but tables.

        Args:
            files: What there is, relative to the folder.
            used: What was read of it.
            are_classes: Whether folders are classes; ``None`` is where no table tells labels.
        """
        known = set(used)
        are_classes = bool(known) and (_are_classes(files) if are_classes is None else are_classes)
        rest = [file for file in files if file not in known and file.name.lower() not in _CLUTTER]
        in_classes = [file for file in rest if are_classes and len(file.parts) > 1]
        counted = {file for file in in_classes if file.suffix.lower() not in _TABLES}
        left = [file for file in rest if looks_like_an_image(file) or file in counted]
        kept = {file.parent for file in known}
        lost = {file.parent.as_posix() for file in left if file.parent not in kept and len(file.parts) > 1}
        return cls(tuple(left), tuple(sorted(lost)))

    @property
    def images(self) -> int:
        """How many of the files are images by their ending."""
        return sum(map(looks_like_an_image, self.files))

    def __str__(self) -> str:
        kinds = Counter(file.suffix.lower() or "without ending" for file in self.files).most_common()
        examples = ", ".join(file.as_posix() for file in self.files[:3])
        parts = [
            f"{len(self.files)} files were left out ({_few([f'{number} {kind}' for kind, number in kinds])}), e.g."
            f" {examples}"
        ]
        if self.lost:
            parts.append(f"nothing was read from {_few([repr(name) for name in self.lost])}")
        if any(looks_like_an_image(file) and not is_image_file(file) for file in self.files):
            parts.append("convert images of kinds that Pillow does not decode, or install its plug-in for them")
        return "; ".join(parts)


def left_out_of(source: str, tables: Iterable[EncodedImages]) -> LeftOut:
    """Find what was not read of a source that is a folder, or a table in one; of other sources there is nothing."""
    path = Path(source).expanduser()
    folder = path if path.is_dir() else path.parent
    if not path.exists() or source.startswith("sklearn:"):
        return LeftOut()
    files = visible_files(folder)
    names = [Path(name) for table in tables for name in table.files()]
    used = {name.relative_to(folder) for name in names if name.is_relative_to(folder)}
    # A table may name files by another path than the one that its folder was given by: absolute, or over a link.
    elsewhere = {name.resolve() for name in names if not name.is_relative_to(folder)}
    if elsewhere:
        used |= {file for file in files if file not in used and (folder / file).resolve() in elsewhere}
    return LeftOut.of(files, used, are_classes=False if path.is_file() else None)


def _are_classes(files: Sequence[Path]) -> bool:
    """Tell whether folders are classes, as no table tells labels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was said when they were read
        return not find_label_tables(files)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
