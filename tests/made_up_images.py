"""Small images and tables of them, for tests that need data on a disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
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
