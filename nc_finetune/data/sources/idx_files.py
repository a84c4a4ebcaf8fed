"""The idx files of MNIST, Fashion-MNIST and their kin."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import datasets

_PARTS = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTES = 8


def is_idx_folder(files: Sequence[Path]) -> bool:
    """Tell whether the names of files are those of an idx data set, compressed or not."""
    return any(file.name.startswith("train-images") and "idx3-ubyte" in file.name for file in files)


def read_idx_folder(folder: Path, files: Sequence[Path]) -> dict[str, datasets.Dataset]:
    """Read ``train-images-idx3-ubyte``, its labels, and the ``t10k`` files where they are; each may end in ``.gz``.

    Returns:
        HF datasets by split with the columns ``image`` and ``label``; the labels are integers.

    Raises:
        ValueError: If a file is damaged, or images and labels are not equal in number.
    """
    pairs = {
        split: (_find(folder, files, f"{name}-images"), _find(folder, files, f"{name}-labels"))
        for split, name in _PARTS.items()
    }
    found = {}
    for split, (images, labels) in pairs.items():
        if split == "train" or images:
            found[split] = _rows(
                _checked(images, folder, f"{_PARTS[split]}-images-idx3-ubyte"),
                _checked(labels, folder, f"{_PARTS[split]}-labels-idx1-ubyte"),
            )
    return found


def array_rows(
    images: NDArray[np.uint8], labels: Sequence[int], names: Sequence[str] | None = None
) -> datasets.Dataset:
    """Return an HF dataset of arrays ``(N, H, W)`` or ``(N, H, W, 3)``, without compression and without loss.

    Args:
        images: The pixels.
        labels: N integers.
        names: Class names; ``None`` leaves the labels integers.
    """
    import datasets as hf

    kind, (height, width) = (b"P6" if images.ndim == 4 else b"P5"), images.shape[1:3]
    # Netpbm is a header and the pixels: nothing to compress, 50 times as fast to write as PNG.
    header = b"%s %d %d 255\n" % (kind, width, height)
    encoded = [{"bytes": header + image.tobytes(), "path": None} for image in images]
    label = hf.Value("int64") if names is None else hf.ClassLabel(names=list(names))
    features = hf.Features({"image": hf.Image(), "label": label})
    return hf.Dataset.from_dict({"image": encoded, "label": list(labels)}, features=features)


def _find(folder: Path, files: Sequence[Path], start: str) -> Path | None:
    return next((folder / file for file in files if file.name.startswith(start)), None)


def _checked(path: Path | None, folder: Path, name: str) -> Path:
    if path is None:
        raise ValueError(f"{folder} lacks {name} or {name}.gz beside the other idx files; put it there")
    return path


def _rows(images: Path, labels: Path) -> datasets.Dataset:
    pixels, numbers = _read_idx(images, 3), _read_idx(labels, 1)
    if len(pixels) != len(numbers):
        raise ValueError(f"{images} has {len(pixels)} images, {labels} has {len(numbers)} labels; download both again")
    return array_rows(pixels, numbers.tolist())


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an array of unsigned bytes: two zeros, its type, its number of dimensions, its sizes, its values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}; download it again") from error
    start = 4 + 4 * dimensions
    if len(content) < start or tuple(content[:4]) != (0, 0, _UNSIGNED_BYTES, dimensions):
        raise ValueError(f"{path} is no idx file of {dimensions} dimensions of bytes; download it again")
    shape = np.frombuffer(content[4:start], dtype=">u4").astype(int)
    if len(content) - start != shape.prod():
        raise ValueError(
            f"{path} announces {shape.prod():,} bytes and holds {len(content) - start:,}; download it again"
        )
    return np.frombuffer(content[start:], dtype=np.uint8).reshape(shape)
