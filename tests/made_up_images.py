"""Small images and tables of them, for tests that need data on a disk."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def write_images(folder: Path, *names: str, value: int = 0) -> None:
    """Write a grey image of 8 x 8 pixels under each name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), value).save(path)


def make_rows(labels: Sequence[Any], feature: Any = None, image: str = "image", label: str = "label") -> Any:
    """Return an HF dataset in which row i is an image of grey value i."""
    feature = datasets.ClassLabel(names=["cat", "dog"]) if feature is None else feature
    images = [np.full((8, 8), row, dtype=np.uint8) for row in range(len(labels))]
    features = datasets.Features({image: datasets.Image(), label: feature})
    return datasets.Dataset.from_dict({image: images, label: list(labels)}, features=features)


def write_parquet(path: Path, labels: Sequence[Any], feature: Any = None, **columns: str) -> None:
    """Write the rows of :func:`make_rows` to a parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_rows(labels, feature, **columns).to_parquet(str(path))


def idx(values: NDArray[np.uint8]) -> bytes:
    """Return an array of bytes as an idx file."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes() + values.tobytes()


def write_idx(folder: Path, number: int, prefix: str = "train", packed: bool = False) -> NDArray[np.uint8]:
    """Write images of random pixels with the labels 0, 1, 0, ..., and return the pixels."""
    images = np.random.default_rng(number).integers(256, size=(number, 28, 28), dtype=np.uint8)
    labels = (np.arange(number) % 2).astype(np.uint8)
    for name, values in (("images-idx3", images), ("labels-idx1", labels)):
        content = idx(values)
        path = folder / f"{prefix}-{name}-ubyte{'.gz' * packed}"
        path.write_bytes(gzip.compress(content) if packed else content)
    return images
