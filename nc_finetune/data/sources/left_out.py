"""Files that look as if they were meant to be read, and were not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nc_finetune.data._pixels.image_files import is_image_file, looks_like_an_image
from nc_finetune.data.sources.file_listing import visible_files
from nc_finetune.data.sources.source import Source

# What file managers leave in every folder.
_CLUTTER = ("thumbs.db", "desktop.ini")
_TABLES = (".csv", ".tsv", ".json", ".jsonl")


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
    def of(cls, files: Sequence[Path], used: Iterable[Path]) -> LeftOut:
        """Compare what there is with what was read.

        Images count, and where folders are classes every file in them: where no table stands in the folder itself.
        """
        known = set(used)
        are_classes = bool(known) and not any(file.suffix.lower() in _TABLES for file in files if len(file.parts) == 1)
        rest = [file for file in files if file not in known and file.name.lower() not in _CLUTTER]
        left = [file for file in rest if looks_like_an_image(file) or (are_classes and len(file.parts) > 1)]
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
        if not all(map(is_image_file, self.files)):
            parts.append("convert images of kinds that Pillow does not decode, or install its plug-in for them")
        return "; ".join(parts)


def left_out_of(source: str, found: Source) -> LeftOut:
    """Find what was left out of a source that is a folder, or a table in one.

    Args:
        source: Where it is.
        found: What was read of it.

    Returns:
        What was left out; nothing of other sources.
    """
    path = Path(source).expanduser()
    folder = path if path.is_dir() else path.parent
    if not path.exists() or source.startswith("sklearn:"):
        return LeftOut()
    names = (name for table in (*found.splits.values(), *found.unlabelled.values()) for name in table.files())
    used = [Path(name).relative_to(folder) for name in names if Path(name).is_relative_to(folder)]
    return LeftOut.of(visible_files(folder), used)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
