"""Where images come from: built-in sets, local folders, the hub. The only place that knows HF datasets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nc_finetune.errors import missing_extra, unknown_name

if TYPE_CHECKING:
    import datasets

BUILT_IN = ("sklearn:digits",)
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
TABLE_SUFFIXES = (".parquet", ".arrow")


@dataclass(frozen=True)
class ImageTable:
    """One split as it was found: encoded images and integer labels.

    Attributes:
        rows: The HF dataset; images are not decoded.
        image_column: Name of its column of images.
        labels: The label of each row, in ``[0, K)``.
    """

    rows: datasets.Dataset
    image_column: str
    labels: list[int]

    def encoded(self, row: int) -> dict[str, Any]:
        """Return ``{"bytes": ..., "path": ...}`` of one image."""
        value: dict[str, Any] = self.rows[row][self.image_column]
        return value


@dataclass(frozen=True)
class Source:
    """A labelled set of images with the splits that it came with.

    Attributes:
        splits: ``"train"`` and, where the source has them, ``"val"`` and ``"test"``.
        class_names: K names; the label is the index.
    """

    splits: dict[str, ImageTable]
    class_names: tuple[str, ...]

    def fingerprint(self) -> str:
        """Hash labels and images of every split: bytes where they are in the table, else file name and size.

        Returns:
            BLAKE2b in hexadecimal.
        """
        digest = hashlib.blake2b(digest_size=16)
        for split, table in self.splits.items():
            digest.update(repr((split, self.class_names, table.labels)).encode())
            for image in table.rows[table.image_column]:
                digest.update(image["bytes"] or _file_identity(Path(image["path"])))
        return digest.hexdigest()


def _file_identity(path: Path) -> bytes:
    return f"{path.parent.name}/{path.name} {path.stat().st_size}".encode()


def _canonical_splits(found: dict[str, Any]) -> dict[str, Any]:
    """Rename splits to train, val and test; the only split of a source is its train split."""
    if len(found) == 1:
        return {"train": next(iter(found.values()))}
    known = {name: rows for name, aliases in SPLIT_NAMES.items() for alias, rows in found.items() if alias in aliases}
    if "train" not in known:
        raise ValueError(f"the source has no train split, only {', '.join(found)}; name one of them 'train'")
    return known


def _find_columns(rows: datasets.Dataset, image: str | None, label: str | None) -> tuple[str, str]:
    """Return the columns of images and labels: those given, or the only image column and the usual label names."""
    import datasets as hf

    images = [name for name, feature in rows.features.items() if isinstance(feature, hf.Image)]
    labels = [name for name, feature in rows.features.items() if isinstance(feature, hf.ClassLabel)]
    labels = labels or [name for name in ("label", "labels", "class", "target") if name in rows.features]
    for kind, given, candidates in (("image", image, images), ("label", label, labels)):
        if given is not None and given not in rows.features:
            raise unknown_name(f"{kind} column", given, rows.column_names)
        if given is None and len(candidates) != 1:
            raise ValueError(f"cannot tell the {kind} column among {', '.join(rows.column_names)}; pass {kind}_column=")
    return image or images[0], label or labels[0]


def _class_names(feature: Any, values: list[list[Any]]) -> tuple[str, ...]:
    """Return the names that the data declare, or every label that occurs."""
    if getattr(feature, "names", None):
        return tuple(feature.names)
    labels = sorted({label for column in values for label in column})
    if labels and isinstance(labels[0], int) and labels[0] >= 0:
        return tuple(str(label) for label in range(labels[-1] + 1))
    return tuple(map(str, labels))


def _as_integers(values: list[Any], names: tuple[str, ...], split: str) -> list[int]:
    index = {name: number for number, name in enumerate(names)}
    labels = [value if isinstance(value, int) else index[str(value)] for value in values]
    if wrong := sorted({label for label in labels if not 0 <= label < len(names)}):
        raise ValueError(
            f"labels must lie in [0, {len(names)}), the {split} split has {', '.join(map(str, wrong[:5]))};"
            " leave rows without a label out"
        )
    return labels


def _from_datasets(found: dict[str, datasets.Dataset], image: str | None, label: str | None) -> Source:
    """Build a source from HF datasets by split."""
    import datasets as hf

    splits = {name: rows for name, rows in _canonical_splits(found).items() if len(rows)}
    if "train" not in splits:
        raise ValueError("the train split is empty")
    image, label = _find_columns(splits["train"], image, label)
    values = {name: list(rows[label]) for name, rows in splits.items()}
    names = _class_names(splits["train"].features[label], list(values.values()))
    tables = {
        name: ImageTable(
            rows.select_columns([image]).cast_column(image, hf.Image(decode=False)),
            image,
            _as_integers(values[name], names, name),
        )
        for name, rows in splits.items()
    }
    return _checked(Source(tables, names))


def _checked(source: Source) -> Source:
    if len(source.class_names) < 2:
        raise ValueError(f"the data have one class only ({source.class_names[0]!r}); there is nothing to classify")
    return source


def _digits() -> Source:
    """Return scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (Alpaydin & Kaynak 1998, 10.24432/C50P49)."""
    import datasets as hf
    import numpy as np

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra("scikit-learn", "offline", "the data 'sklearn:digits'") from error
    digits = load_digits()
    images = [np.asarray(image * (255 / 16)).round().astype(np.uint8) for image in digits.images]
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=[str(digit) for digit in range(10)])})
    rows = hf.Dataset.from_dict({"image": images, "label": digits.target.tolist()}, features=features)
    return _from_datasets({"train": rows}, "image", "label")


def _image_folder(folders: dict[str, Path]) -> Source:
    """Read one folder a class, in one folder a split; a class may be absent from a split."""
    import datasets as hf
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    names = sorted({entry.name for folder in folders.values() for entry in folder.iterdir() if entry.is_dir()})
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=names)})
    splits = {}
    for split, folder in folders.items():
        present = {name: number for number, name in enumerate(names) if (folder / name).is_dir()}
        files = make_dataset(str(folder), present, extensions=IMG_EXTENSIONS, allow_empty=True)
        if not files:
            raise ValueError(f"no images in {folder}; expected one folder a class with {', '.join(IMG_EXTENSIONS)}")
        columns = {"image": [path for path, _ in files], "label": [label for _, label in files]}
        splits[split] = hf.Dataset.from_dict(columns, features=features)
    return _from_datasets(splits, "image", "label")


def _folder(path: Path, image: str | None, label: str | None) -> Source:
    """Read a local folder: saved HF datasets, parquet or arrow files, or images."""
    import datasets as hf

    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = hf.load_from_disk(str(path))
        return _from_datasets(dict(saved) if isinstance(saved, hf.DatasetDict) else {"train": saved}, image, label)
    tables = sorted(file for file in path.rglob("*") if file.suffix in TABLE_SUFFIXES)
    if tables:
        kind = "parquet" if tables[0].suffix == ".parquet" else "arrow"
        files: dict[str, list[str]] = {}
        for file in tables:
            files.setdefault(_split_of(file.relative_to(path)), []).append(str(file))
        return _from_datasets(dict(hf.load_dataset(kind, data_files=files)), image, label)
    children = {entry.name.lower(): entry for entry in path.iterdir() if entry.is_dir()}
    if not children:
        raise ValueError(f"{path} holds no parquet or arrow files and no folders of images")
    split_folders = {
        name: children[alias] for name, aliases in SPLIT_NAMES.items() for alias in aliases if alias in children
    }
    has_splits = "train" in split_folders and any(entry.is_dir() for entry in split_folders["train"].iterdir())
    return _image_folder(split_folders if has_splits else {"train": path})


def _split_of(file: Path) -> str:
    """Tell the split from the first word of a table's name, or from its folder: ``test-00000-of-00001.parquet``."""
    words = (file.stem.split("-")[0].lower(), *(part.lower() for part in file.parts[:-1]))
    return next((split for word in words for split, aliases in SPLIT_NAMES.items() if word in aliases), "train")


def _hub(source: str, image: str | None, label: str | None) -> Source:
    import datasets as hf

    try:
        found = hf.load_dataset(source)
    except Exception as error:  # the hub client has many kinds
        raise ValueError(
            f"{source!r} is neither built in ({', '.join(BUILT_IN)}) nor an existing folder, and could not be loaded"
            f" from the hub: {error}"
        ) from error
    return _from_datasets(dict(found), image, label)


def load_source(source: str, image_column: str | None = None, label_column: str | None = None) -> Source:
    """Find a labelled set of images.

    Args:
        source: ``"sklearn:digits"``; a folder with parquet or arrow files, a saved HF dataset, or images (one folder
            a class, in ``train``/``val``/``test`` folders or directly); or the id of a data set on the HF hub.
        image_column: Column of the images in a table; ``None`` finds it.
        label_column: Column of the labels in a table; ``None`` finds it.

    Returns:
        Splits and class names.

    Raises:
        FileNotFoundError: If the source is a path and nothing is there.
        ValueError: If the source is unknown, or has no images, one class only, or labels out of range.
        ImportError: If a built-in set needs an extra that is not installed.

    Example:
        >>> source = load_source("sklearn:digits")
        >>> len(source.splits["train"].labels), source.class_names[:3]
        (1797, ('0', '1', '2'))
    """
    if source in BUILT_IN:
        return _digits()
    if source.startswith("sklearn:"):
        raise unknown_name("built-in data", source, BUILT_IN)
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, image_column, label_column)
    if path.exists() or path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise FileNotFoundError(f"no folder of images or tables at {source!r}")
    return _hub(source, image_column, label_column)
