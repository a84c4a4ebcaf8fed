"""Rows of tensors by name: in memory, or in a folder that several runs share."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from nc_finetune.cache.row_layout import RowLayout, raw_bytes

_META = "meta.json"
_UNFINISHED = ".tmp"
_DAY = 24 * 3600


class FeatureStore:
    """Samples of several tensors, to be had in any order.

    Args:
        arrays: Rows by name, in the order of the store.
        layouts: How to turn them into batches.

    Attributes:
        nbytes: Bytes of all rows.
    """

    def __init__(self, arrays: Mapping[str, Tensor], layouts: Mapping[str, RowLayout]) -> None:
        self._arrays = dict(arrays)
        self._layouts = dict(layouts)
        self.nbytes = sum(array.nbytes for array in self._arrays.values())

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def rows(self, indices: Tensor) -> dict[str, Tensor]:
        """Return a batch of each tensor: copies, with the strides that they came with."""
        # Rows are copied whole, which indexing with brackets does entry by entry.
        found = {name: array.index_select(0, indices) for name, array in self._arrays.items()}
        return {name: self._layouts[name].unpack(rows) for name, rows in found.items()}


class MemoryWriter:
    """Fill a store in memory.

    Args:
        layouts: Of each tensor.
        rows: Samples that will come.

    Example:
        >>> batch = {"features": torch.ones(2, 3)}
        >>> writer = MemoryWriter({"features": RowLayout.of(batch["features"])}, rows=2)
        >>> writer.append(batch)
        >>> writer.finish().rows(torch.tensor([1]))
        {'features': tensor([[1., 1., 1.]])}
    """

    def __init__(self, layouts: Mapping[str, RowLayout], rows: int) -> None:
        self._layouts = layouts
        # Filled inside inference mode perhaps, but made outside: what is made there never enters a graph.
        with torch.inference_mode(False):
            self._arrays = {name: torch.empty(rows, *to.sizes, dtype=to.dtype) for name, to in layouts.items()}
        self._filled = 0

    def append(self, batch: Mapping[str, Tensor]) -> None:
        """Add samples."""
        number = len(next(iter(batch.values())))
        for name, array in self._arrays.items():
            array[self._filled : self._filled + number] = self._layouts[name].pack(batch[name])
        self._filled += number

    def finish(self) -> FeatureStore:
        """Return the store."""
        return FeatureStore(self._arrays, self._layouts)

    def abandon(self) -> None:
        """Let go of everything."""
        self._arrays.clear()


class FileWriter:
    """Fill a store in a folder, which is there once it is whole: a run that is killed leaves nothing that is read.

    Args:
        layouts: Of each tensor.
        folder: Where the store will be.

    Raises:
        OSError: Here or later, if the folder is not writable or full.
    """

    def __init__(self, layouts: Mapping[str, RowLayout], folder: Path) -> None:
        self._layouts = layouts
        self._folder = folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        self._partial = folder.parent / f".{uuid.uuid4().hex}{_UNFINISHED}"
        self._partial.mkdir()
        self._files: dict[str, BinaryIO] = {}
        self._rows = 0
        for number, name in enumerate(layouts):
            self._files[name] = array_file(self._partial, number).open("xb")

    def append(self, batch: Mapping[str, Tensor]) -> None:
        """Add samples."""
        for name, file in self._files.items():
            # Written, not mapped: a full disk is then an error that can be caught.
            file.write(raw_bytes(self._layouts[name].pack(batch[name])))
        self._rows += len(next(iter(batch.values())))

    def leave_room(self, rows: int) -> None:
        """Add samples that are still to come: holes in the files, which read as zeros."""
        self._rows += rows
        for name, file in self._files.items():
            file.truncate(self._rows * self._layouts[name].row_bytes)
            file.seek(0, os.SEEK_END)

    def finish(self) -> FeatureStore:
        """Give the folder its name and return the store; another run's, if that was first."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        meta = {"rows": self._rows, "layouts": {name: to.to_json() for name, to in self._layouts.items()}}
        (self._partial / _META).write_text(json.dumps(meta), encoding="utf-8")
        try:
            self._partial.rename(self._folder)
        except OSError:  # it is there already
            self.abandon()
        store = open_store(self._folder)
        if store is None:
            raise OSError(f"{self._folder} cannot be read back")
        return store

    def abandon(self) -> None:
        """Remove what has been written."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # closing flushes, perhaps to a full disk
                file.close()
        shutil.rmtree(self._partial, ignore_errors=True)


def array_file(folder: Path, number: int) -> Path:
    """Return where the rows of a tensor are in the folder of a store: of the first one 0."""
    return folder / f"{number}.bin"


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed runs have left."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _DAY:
                shutil.rmtree(path, ignore_errors=True)


def open_store(folder: Path) -> FeatureStore | None:
    """Map the store in a folder into memory.

    Args:
        folder: Of a :class:`FileWriter`.

    Returns:
        The store, or ``None`` if there is none, or it is not whole.
    """
    try:
        meta: dict[str, Any] = json.loads((folder / _META).read_text(encoding="utf-8"))
        layouts = {name: RowLayout.from_json(content) for name, content in meta["layouts"].items()}
        arrays = {
            name: _map(array_file(folder, number), meta["rows"], layout)
            for number, (name, layout) in enumerate(layouts.items())
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return FeatureStore(arrays, layouts)


def _map(path: Path, rows: int, layout: RowLayout) -> Tensor:
    if path.stat().st_size != rows * layout.row_bytes:
        raise ValueError(f"{path} is truncated")
    size = path.stat().st_size // layout.dtype.itemsize
    return torch.from_file(str(path), shared=False, size=size, dtype=layout.dtype).view(rows, *layout.sizes)
