"""What a source comes to: a table of encoded images and integer labels for each of its splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

if TYPE_CHECKING:
    import datasets

_MOST_HASHES = 2**18  # of files that a process remembers, of about 300 bytes each


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
        return [path for path in self._find_paths() or () if path is not None]

    def stamp(self, row: int) -> bytes:
        """Return the stamp of the file of a row as of now; empty where the image is in the table itself."""
        path = self._paths[row] if self._paths else None
        return b"" if path is None else file_stamp(path)

    def with_absolute_paths(self) -> Self:
        """Return the same with the files named from the root of the disk, so that any process finds them."""
        import datasets as hf

        paths = self._find_paths() or []
        if all(path is None or path == _absolute(path) for path in paths):
            return self
        images: list[dict[str, Any] | None] = self.rows[self.image_column][:]
        whole = [
            image if image is None or path is None else image | {"path": _absolute(path)}
            for image, path in zip(images, paths, strict=True)
        ]
        return replace(self, rows=hf.Dataset.from_dict({self.image_column: whole}, features=self.rows.features))

    @cached_property
    def _paths(self) -> list[str | None] | None:
        return self._find_paths()

    def _find_paths(self) -> list[str | None] | None:
        """Return the file of each row, ``None`` for those without; ``None`` where all are in the table."""
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


@dataclass(frozen=True)
class ImageTable(EncodedImages):
    """One split as it was found: encoded images and integer labels.

    Attributes:
        labels: The label of each row, in ``[0, K)``; of a row of several labels the rarest, of one without labels K.
        label_sets: All labels of each row; ``None`` where every row has one.
        others: Its other columns; ``None`` where there are none.
    """

    labels: list[int]
    label_sets: list[tuple[int, ...]] | None = None
    others: datasets.Dataset | None = None

    def labels_of(self, row: int) -> tuple[int, ...]:
        """Return all labels of a row."""
        return (self.labels[row],) if self.label_sets is None else self.label_sets[row]

    def followed_by(self, other: ImageTable) -> ImageTable:
        """Return a table with the rows of another one behind its own; columns that only one has are left out."""
        import datasets as hf

        sets = None
        if self.label_sets is not None and other.label_sets is not None:
            sets = [*self.label_sets, *other.label_sets]
        return ImageTable(
            hf.concatenate_datasets([self.rows, other.rows]),
            self.image_column,
            [*self.labels, *other.labels],
            sets,
            _joined_columns(self.others, other.others),
        )


@dataclass(frozen=True)
class Source:
    """A labelled set of images with the splits that it came with.

    Attributes:
        splits: ``"train"`` and, where the source has them, ``"val"`` and ``"test"``.
        class_names: K names; the label is the index.
        unlabelled: Images without a label, by the split that they were in: for predicting.
        label_column: What the column of the labels is called.
    """

    splits: dict[str, ImageTable]
    class_names: tuple[str, ...]
    unlabelled: dict[str, EncodedImages] = field(default_factory=dict)
    label_column: str = "label"

    @property
    def multi_label(self) -> bool:
        """Whether a row may have several labels, or none."""
        return self.splits["train"].label_sets is not None

    def with_validation_in_train(self) -> Source:
        """Return the same with the images of the validation split behind those of the train split."""
        if "val" not in self.splits:
            return self
        train = self.splits["train"].followed_by(self.splits["val"])
        rest = {name: table for name, table in self.splits.items() if name not in ("train", "val")}
        return replace(self, splits={"train": train, **rest})

    def with_all_in_train(self) -> Source:
        """Return the same with the images of every split in the train split, one split behind the other."""
        train, *others = self.splits.values()
        for table in others:
            train = train.followed_by(table)
        return replace(self, splits={"train": train})

    def with_absolute_paths(self) -> Source:
        """Return the same with the files of images named from the root of the disk."""
        splits = {name: table.with_absolute_paths() for name, table in self.splits.items()}
        unlabelled = {name: images.with_absolute_paths() for name, images in self.unlabelled.items()}
        return replace(self, splits=splits, unlabelled=unlabelled)

    def fingerprint(self) -> str:
        """Hash what is there: the labels and the content of the images of every split, whatever the files are called.

        Returns:
            BLAKE2b in hexadecimal, the same on every machine.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for split, table in self.splits.items():
            digest.update(repr((split, self.class_names, table.label_sets or table.labels)).encode())
            for image in table.rows[table.image_column]:
                digest.update(_content(image))
        return digest.hexdigest()


def _absolute(path: str) -> str:
    return path if "://" in path or Path(path).is_absolute() else str(Path(path).absolute())


def _joined_columns(first: datasets.Dataset | None, second: datasets.Dataset | None) -> datasets.Dataset | None:
    import datasets as hf

    if first is None or second is None:
        return None
    shared = [name for name in first.column_names if first.features.get(name) == second.features.get(name)]
    return hf.concatenate_datasets([part.select_columns(shared) for part in (first, second)]) if shared else None


def file_stamp(path: str) -> bytes:
    """Say which file this is, and in which state: where it is, how large, and when it was written and put there.

    Returns:
        Another text once the file is written or replaced; the same one for all that are not there.
    """
    try:
        state = Path(path).stat()
    except OSError:  # gone, or a link to nowhere
        return b"no file"
    # The time of writing can be set, and copies take that of their originals; the time of the last change cannot.
    return f"{Path(path).absolute()} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}".encode()


def _content(image: dict[str, Any] | None) -> bytes:
    """Return the bytes of an image in a table, or a hash of its file."""
    if not image or not (image["bytes"] or image["path"]):
        return b"no image"
    if image["bytes"]:
        return bytes(image["bytes"])
    try:
        if not Path(image["path"]).is_file():  # a pipe would never end
            return b"no file"
        return _file_hash(image["path"], file_stamp(image["path"]))
    except OSError:  # gone, or a link to nowhere: a bad image, which on_bad_image deals with
        return b"no file"


@lru_cache(maxsize=_MOST_HASHES)
def _file_hash(path: str, _stamp: bytes) -> bytes:
    """Hash a file; once, until its stamp is another."""
    return hashlib.blake2b(Path(path).read_bytes()).digest()
