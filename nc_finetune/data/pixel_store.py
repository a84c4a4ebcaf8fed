"""Images at the working size, decoded once."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


class PixelStore:
    """Decoded images of one table, in a file that all processes and runs on this machine share.

    The file is as large as all images at once: rows that nobody has asked for are holes in it. A row counts once it is
    marked, and it is marked once it is written, so a process may be killed at any time.

    Args:
        folder: Where the files are; it is made.
        identity: What decides the pixels: the data, the table, how they are resized.
        rows: Of the table.
        image_size: Height and width of the images in pixels.

    Warns:
        UserWarning: Once, if the folder is not writable or full; images are then decoded each time.

    Example:
        >>> import tempfile
        >>> store = PixelStore(Path(tempfile.mkdtemp()), "two images of 1 x 1", rows=2, image_size=1)
        >>> store.get(1, lambda: torch.full((3, 1, 1), 7, dtype=torch.uint8)).flatten().tolist()
        [7, 7, 7]
        >>> store.get(1, lambda: torch.zeros(3, 1, 1, dtype=torch.uint8)).flatten().tolist()
        [7, 7, 7]
    """

    def __init__(self, folder: Path, identity: str, rows: int, image_size: int) -> None:
        name = hashlib.blake2b(f"{identity} {rows} {image_size}".encode(), digest_size=12).hexdigest()
        self.path = folder / f"{name}.pixels"
        self.rows = rows
        self.shape = (3, image_size, image_size)
        self._bytes = 3 * image_size * image_size
        self._file: int | None = None
        self._owner: int | None = None
        self._broken = False

    def get(self, row: int, decode: Callable[[], Tensor]) -> Tensor:
        """Return an image, uint8 of shape ``(3, image_size, image_size)``; decode it the first time."""
        file = self._open()
        if file is None:
            return decode()
        offset = self.rows + row * self._bytes
        if os.pread(file, 1, row) == b"\1":
            pixels = bytearray(os.pread(file, self._bytes, offset))
            return torch.frombuffer(pixels, dtype=torch.uint8).view(self.shape)
        image = decode()
        try:
            # Written, not mapped: a full disk is then an error that can be caught.
            os.pwrite(file, image.contiguous().numpy().tobytes(), offset)
            os.pwrite(file, b"\1", row)
        except OSError as error:
            self._give_up(error)
        return image

    def _open(self) -> int | None:
        """Open the file once in each process."""
        if self._broken or self._owner == os.getpid():
            return None if self._broken else self._file
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            size = self.rows * (1 + self._bytes)
            if os.fstat(self._file).st_size not in (0, size):  # cut: no telling where
                os.truncate(self._file, 0)
            os.truncate(self._file, size)
            self._owner = os.getpid()
        except OSError as error:
            self._give_up(error)
        return None if self._broken else self._file

    def _give_up(self, error: OSError) -> None:
        self._broken = True
        warnings.warn(f"decoded images cannot be kept in {self.path.parent}: {error}", stacklevel=3)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None, "_owner": None}
