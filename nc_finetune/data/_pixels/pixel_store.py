"""Images at the working size, decoded once."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nc_finetune.cache import GrowingStore, RowLayout
from nc_finetune.errors import DataWarning


class PixelStore:
    """Decoded images of one table, in a store that all processes and runs on this machine share.

    Args:
        folder: Where stores are; it is made.
        identity: What decides the pixels: the data, the table, how they are decoded and resized.
        rows: Of the table.
        image_size: Height and width of the images in pixels.
        stamp: What is known of the file of a row: an image is kept for as long as it stays the same. ``None`` where
            images are in the table. See :class:`~nc_finetune.data.sources.tables.EncodedImages`.

    Warns:
        UserWarning: Once, if the folder is not writable or full; images that are not there are then decoded each time.

    Example:
        >>> import tempfile
        >>> store = PixelStore(Path(tempfile.mkdtemp()), "two images of 1 x 1", rows=2, image_size=1)
        >>> store.get(1, lambda: torch.full((3, 1, 1), 7, dtype=torch.uint8)).flatten().tolist()
        [7, 7, 7]
        >>> store.get(1, lambda: torch.zeros(3, 1, 1, dtype=torch.uint8)).flatten().tolist()
        [7, 7, 7]
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        rows: int,
        image_size: int,
        stamp: Callable[[int], bytes] | None = None,
    ) -> None:
        name = hashlib.blake2b(f"{identity} {rows} {image_size}".encode(), digest_size=12).hexdigest()
        self.path = folder / name
        self.rows = rows
        self.shape = (3, image_size, image_size)
        self._stamp = stamp
        self._store: GrowingStore | None = None
        self._is_readable = self._is_writable = True

    def get(self, row: int, decode: Callable[[], Tensor]) -> Tensor:
        """Return an image, uint8 of shape ``(3, image_size, image_size)``; decode it the first time."""
        key = b"" if self._stamp is None else self._stamp(row)
        store = self._opened()
        found = None if store is None else store.get(row, key)
        if found is not None:
            return found
        image = decode()
        if store is not None and self._is_writable:
            try:
                store.put(row, key, image)
            except OSError as error:
                self._is_writable = False
                self._warn(error)
        return image

    def _opened(self) -> GrowingStore | None:
        if self._store is None and self._is_readable:
            layout = RowLayout.of(torch.empty(1, *self.shape, dtype=torch.uint8))
            try:
                self._store = GrowingStore(self.path, layout, self.rows)
            except OSError as error:
                self._is_readable = False
                self._warn(error)
        return self._store

    def _warn(self, error: OSError) -> None:
        said = f"decoded images cannot be kept in {self.path.parent}: {error}"
        warnings.warn(said, DataWarning, stacklevel=4)
