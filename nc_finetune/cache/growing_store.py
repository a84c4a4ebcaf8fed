"""Rows that any process adds and reads, in any order."""

from __future__ import annotations

import errno
import hashlib
import shutil
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nc_finetune.cache.feature_store import FeatureStore, FileWriter, array_file, open_store
from nc_finetune.cache.row_layout import RowLayout, raw_bytes

_ROWS, _MARKS = "rows", "marks"


class GrowingStore:
    """A :class:`FeatureStore` in a folder that is filled row by row, by all processes and runs on this machine.

    It is as large as all rows at once: those that nobody has added are holes in it. A row counts where the mark beside
    it is that of the key that is asked for and of the very bytes that are there. So a process may be killed at any
    time, the disk be full, or two processes write at once: a row is what was put there under its key, or it is absent.

    Args:
        folder: Where the store is; it is made, or made anew where it is not whole.
        layout: Of a batch of one row.
        rows: How many there may be.

    Raises:
        OSError: Here or later, if the folder is not writable or full.

    Example:
        >>> import tempfile
        >>> store = GrowingStore(Path(tempfile.mkdtemp()) / "store", RowLayout.of(torch.zeros(1, 2)), rows=3)
        >>> store.put(1, b"key", torch.tensor([4.0, 5.0]))
        >>> store.get(1, b"key"), store.get(1, b"another key"), store.get(0, b"key")
        (tensor([4., 5.]), None, None)
    """

    def __init__(self, folder: Path, layout: RowLayout, rows: int) -> None:
        self.folder = folder
        self._layouts = {_ROWS: layout, _MARKS: RowLayout((0, 1), (2,), torch.int64)}
        self._number = rows
        self._store: FeatureStore | None = self._open()

    def get(self, row: int, key: bytes) -> Tensor | None:
        """Return a row, or ``None`` where it was not put there under this key."""
        if self._store is None:  # in a process that it was sent to
            self._store = self._open()
        found = self._store.rows(torch.tensor([row]))
        value = found[_ROWS]
        return value[0] if torch.equal(found[_MARKS][0], _mark(key, self._content(value))) else None

    def put(self, row: int, key: bytes, value: Tensor) -> None:
        """Add a row, or replace it."""
        content = self._content(value[None])
        self._write(0, row, content)
        self._write(1, row, raw_bytes(_mark(key, content)))

    def _content(self, batch: Tensor) -> memoryview:
        return raw_bytes(self._layouts[_ROWS].pack(batch))

    def _open(self) -> FeatureStore:
        store = open_store(self.folder)
        if store is not None and len(store) == self._number:
            return store
        shutil.rmtree(self.folder, ignore_errors=True)
        writer = FileWriter(self._layouts, self.folder)
        try:
            writer.leave_room(self._number)
            return writer.finish()
        except OSError:
            writer.abandon()
            raise

    def _write(self, number: int, row: int, content: memoryview) -> None:
        # Written, not mapped: a full disk is then an error that can be caught.
        with array_file(self.folder, number).open("r+b", buffering=0) as file:
            file.seek(row * len(content))
            while content:
                written = file.write(content)
                if not written:
                    raise OSError(errno.ENOSPC, "no room for a whole row")
                content = content[written:]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}


def _mark(key: bytes, content: memoryview) -> Tensor:
    name = hashlib.blake2b(key, digest_size=8).digest()
    return torch.tensor([int.from_bytes(name, "little", signed=True), zlib.crc32(content)])
