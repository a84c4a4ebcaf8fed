"""Well-known data sets in the layout in which their authors publish them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nc_finetune.data.sources.idx_files import array_rows

if TYPE_CHECKING:
    import datasets

# Returns the splits of a variant, e.g. of a fold, of the files in a folder.
Reader = Callable[[Path, str], "dict[str, datasets.Dataset]"]
_PIXELS = 3 * 32 * 32


def find_layout(folder: Path, marker: str) -> Path | None:
    """Return the folder that a file of a layout is relative to: this one, or one up to two levels below."""
    for depth in ("", "*/", "*/*/"):
        if found := sorted(folder.glob(depth + marker)):
            return found[0].parents[len(Path(marker).parts) - 1]
    return None


def read_dtd(folder: Path, fold: str) -> dict[str, datasets.Dataset]:
    """Read one of the ten folds of DTD: ``labels/train1.txt`` and its kin name files of ``images/``."""
    lists = {split: _lines(folder / f"labels/{split}{fold}.txt") for split in ("train", "val", "test")}
    rows = {
        split: [(folder / "images" / name, Path(name).parts[0]) for name in names] for split, names in lists.items()
    }
    return file_rows(rows)


def read_aircraft(folder: Path, level: str) -> dict[str, datasets.Dataset]:
    """Read FGVC-Aircraft by variant, family or manufacturer: a number of an image and a class on each line."""
    rows = {}
    for split in ("train", "val", "test"):
        pairs = [line.split(" ", 1) for line in _lines(folder / f"images_{level}_{split}.txt")]
        rows[split] = [(folder / "images" / f"{number}.jpg", name) for number, name in pairs]
    return file_rows(rows)


def read_pets(folder: Path, level: str) -> dict[str, datasets.Dataset]:
    """Read Oxford-IIIT Pet by breed or species: name, breed from 1, species (1 a cat, 2 a dog) and breed of it."""
    rows: dict[str, list[tuple[Path, str]]] = {}
    for split, file in (("train", "trainval"), ("test", "test")):
        for line in _lines(folder / f"annotations/{file}.txt"):
            name, _, species, *_ = line.split()
            label = name.rsplit("_", 1)[0] if level == "breed" else ("cat", "dog")[int(species) - 1]
            rows.setdefault(split, []).append((folder / "images" / f"{name}.jpg", label))
    return file_rows(rows)


def read_cifar10(folder: Path, _: str) -> dict[str, datasets.Dataset]:
    """Read CIFAR-10's binary edition: a byte of the label and 3,072 of the image on each record."""
    names = _lines(folder / "batches.meta.txt")
    train = [folder / f"data_batch_{number}.bin" for number in range(1, 6)]
    return {"train": _records(train, 1, 0, names), "test": _records([folder / "test_batch.bin"], 1, 0, names)}


def read_cifar100(folder: Path, level: str) -> dict[str, datasets.Dataset]:
    """Read CIFAR-100's binary edition: bytes of the coarse and the fine label and 3,072 of the image."""
    names = _lines(folder / f"{level}_label_names.txt")
    column = ("coarse", "fine").index(level)
    return {split: _records([folder / f"{split}.bin"], 2, column, names) for split in ("train", "test")}


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def file_rows(rows: Mapping[str, Iterable[tuple[Path, str | None]]]) -> dict[str, datasets.Dataset]:
    """Return HF datasets of files and their classes, which all splits number alike; a file may have none."""
    import datasets as hf

    pairs = {split: list(group) for split, group in rows.items()}
    names = sorted({name for group in pairs.values() for _, name in group if name is not None})
    features: Any = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=names)})
    return {
        split: hf.Dataset.from_dict(
            {"image": [str(path) for path, _ in group], "label": [name for _, name in group]}, features=features
        )
        for split, group in pairs.items()
    }


def _records(paths: Iterable[Path], labels: int, column: int, names: list[str]) -> datasets.Dataset:
    content = []
    for path in paths:
        flat = np.fromfile(path, dtype=np.uint8)
        if not flat.size or flat.size % (labels + _PIXELS):
            raise ValueError(f"{path} is damaged: {flat.size:,} bytes are no whole number of images; download it again")
        content.append(flat.reshape(-1, labels + _PIXELS))
    records = np.concatenate(content)
    images = records[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return array_rows(images, records[:, column].tolist(), names)
