"""Whether the files of images are those that were read before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets


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


class FileStamps:
    """The stamp of the file of each row of a table; empty where the image is in the table itself.

    Args:
        rows: A table of images that are not decoded.
        image_column: Name of its column of images.

    Example:
        >>> import datasets
        >>> features = datasets.Features({"image": datasets.Image(decode=False)})
        >>> rows = datasets.Dataset.from_dict({"image": [{"bytes": b"GIF89a", "path": "1.gif"}]}, features)
        >>> FileStamps(rows, "image")(0)
        b''
    """

    def __init__(self, rows: datasets.Dataset, image_column: str) -> None:
        self._paths = _paths(rows, image_column)

    def __call__(self, row: int) -> bytes:
        """Return the stamp of a row as of now."""
        path = self._paths[row] if self._paths else None
        return b"" if path is None else file_stamp(path)

    def files(self) -> list[str]:
        """Return the files that images of the table are in, in the order of the rows."""
        return [path for path in self._paths or () if path is not None]


def _paths(rows: datasets.Dataset, image_column: str) -> list[str | None] | None:
    """Return the file of each row, ``None`` for those without; ``None`` where all are in the table."""
    import pyarrow.compute as pc

    if not pc.struct_field(rows.data.column(image_column), "bytes").null_count:
        return None
    found: list[str | None] = []
    for images in _encoded_images(rows, image_column):
        inside = pc.is_valid(pc.struct_field(images, "bytes"))
        found += pc.if_else(inside, None, pc.struct_field(images, "path")).to_pylist()
    return found


def image_names(rows: datasets.Dataset, image_column: str) -> list[str]:
    """Return the path or the name that a table gives each of its images, empty where it gives none; no image is read.

    Args:
        rows: A table of images that are not decoded.
        image_column: Name of its column of images.
    """
    import pyarrow.compute as pc

    batches = _encoded_images(rows, image_column)
    return [name or "" for images in batches for name in pc.struct_field(images, "path").to_pylist()]


def _encoded_images(rows: datasets.Dataset, image_column: str) -> Iterator[Any]:
    table: Any = rows.select_columns([image_column]).with_format("arrow")
    return (batch.column(image_column) for batch in table.iter(batch_size=1000))
