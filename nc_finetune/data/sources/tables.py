"""What a source comes to: a table of encoded images and integer labels for each of its splits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nc_finetune.data._pixels.encoded_images import EncodedImages

if TYPE_CHECKING:
    import datasets

_MOST_HASHES = 2**18  # of files that a process remembers, of about 300 bytes each


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


@dataclass(frozen=True)
class Source:
    """A labelled set of images with the splits that it came with.

    Attributes:
        splits: ``"train"`` and, where the source has them, ``"val"`` and ``"test"``.
        class_names: K names; the label is the index.
        unlabelled: Images without a label, by the split that they were in: for predicting.
    """

    splits: dict[str, ImageTable]
    class_names: tuple[str, ...]
    unlabelled: dict[str, EncodedImages] = field(default_factory=dict)

    @property
    def multi_label(self) -> bool:
        """Whether a row may have several labels, or none."""
        return self.splits["train"].label_sets is not None

    def fingerprint(self) -> str:
        """Hash what is there: the labels and the content of the images of every split, whatever the files are called.

        Returns:
            BLAKE2b in hexadecimal, the same on every machine.
        """
        digest = hashlib.blake2b(digest_size=16)
        for split, table in self.splits.items():
            digest.update(repr((split, self.class_names, table.label_sets or table.labels)).encode())
            for image in table.rows[table.image_column]:
                digest.update(_content(image))
        return digest.hexdigest()


def _content(image: dict[str, Any] | None) -> bytes:
    """Return the bytes of an image in a table, or a hash of its file."""
    if not image or not (image["bytes"] or image["path"]):
        return b"no image"
    if image["bytes"]:
        return bytes(image["bytes"])
    try:
        if not Path(image["path"]).is_file():  # a pipe would never end
            return b"no file"
        state = Path(image["path"]).stat()
        return _file_hash(image["path"], state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    except OSError:  # gone, or a link to nowhere: a bad image, which on_bad_image deals with
        return b"no file"


@lru_cache(maxsize=_MOST_HASHES)
def _file_hash(path: str, _size: int, _written: int, _changed: int) -> bytes:
    """Hash a file; once, until its size, or the time that it was written or renamed, is another."""
    return hashlib.blake2b(Path(path).read_bytes()).digest()
