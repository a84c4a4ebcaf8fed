"""Images as a table has them: encoded, in the table itself or in files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class EncodedImages:
    """Images as they were found.

    Attributes:
        rows: The HF dataset; images are not decoded.
        image_column: Name of its column of images.

    Example:
        >>> import datasets
        >>> features = datasets.Features({"image": datasets.Image(decode=False)})
        >>> rows = datasets.Dataset.from_dict({"image": [{"bytes": b"GIF89a", "path": "1.gif"}]}, features)
        >>> images = EncodedImages(rows, "image")
        >>> images.encoded(0)["path"], images.stamp(0), images.files()
        ('1.gif', b'', [])
    """

    rows: datasets.Dataset
    image_column: str

    def encoded(self, row: int) -> dict[str, Any]:
        """Return ``{"bytes": ..., "path": ...}`` of one image; both are ``None`` where the row has no image."""
        value: dict[str, Any] | None = self.rows[row][self.image_column]
        return value or {"bytes": None, "path": None}

    def names(self) -> list[str]:
        """Return the path or the name that each image has, empty where it has none; no image is read."""
        import pyarrow.compute as pc

        return [name or "" for images in self._batches() for name in pc.struct_field(images, "path").to_pylist()]

    def files(self) -> list[str]:
        """Return the files that images are in, in the order of the rows."""
        return [path for path in self._paths or () if path is not None]

    def stamp(self, row: int) -> bytes:
        """Return the stamp of the file of a row as of now; empty where the image is in the table itself."""
        path = self._paths[row] if self._paths else None
        return b"" if path is None else file_stamp(path)

    @cached_property
    def _paths(self) -> list[str | None] | None:
        """The file of each row, ``None`` for those without; ``None`` where all are in the table."""
        import pyarrow.compute as pc

        if not pc.struct_field(self.rows.data.column(self.image_column), "bytes").null_count:
            return None
        found: list[str | None] = []
        for images in self._batches():
            inside = pc.is_valid(pc.struct_field(images, "bytes"))
            found += pc.if_else(inside, None, pc.struct_field(images, "path")).to_pylist()
        return found

    def _batches(self) -> Iterator[Any]:
        table: Any = self.rows.select_columns([self.image_column]).with_format("arrow")
        return (batch.column(self.image_column) for batch in table.iter(batch_size=1000))


def file_stamp(path: str) -> bytes:
    """Say which file this is, and in which state: where it is, how large, and when it was written and put there.

    Args:
        path: The file.

    Returns:
        Another text once the file is written or replaced; the same one for all that are not there.
    """
    try:
        state = Path(path).stat()
    except OSError:  # gone, or a link to nowhere
        return b"no file"
    # The time of writing can be set, and copies take that of their originals; the time of the last change cannot.
    return f"{Path(path).absolute()} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}".encode()
