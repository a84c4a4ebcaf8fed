"""Where images come from: built-in sets, local folders, the hub. The only place that knows HF datasets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nc_finetune.data.folders import by_split, read_folder, read_table
from nc_finetune.data.labels import number_label_sets, number_labels, rarest_labels
from nc_finetune.data.named_sets import NAMED_SETS, is_named, load_named
from nc_finetune.errors import missing_extra, unknown_name

if TYPE_CHECKING:
    import datasets

BUILT_IN = ("sklearn:digits",)
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "class", "target", "cls")


@dataclass(frozen=True)
class ImageTable:
    """One split as it was found: encoded images and integer labels.

    Attributes:
        rows: The HF dataset; images are not decoded.
        image_column: Name of its column of images.
        labels: The label of each row, in ``[0, K)``; of a row of several labels the rarest, of one without labels K.
        label_sets: All labels of each row; ``None`` where every row has one.
    """

    rows: datasets.Dataset
    image_column: str
    labels: list[int]
    label_sets: list[tuple[int, ...]] | None = None

    def encoded(self, row: int) -> dict[str, Any]:
        """Return ``{"bytes": ..., "path": ...}`` of one image; both are ``None`` where the row has no image."""
        value: dict[str, Any] | None = self.rows[row][self.image_column]
        return value or {"bytes": None, "path": None}


@dataclass(frozen=True)
class Source:
    """A labelled set of images with the splits that it came with.

    Attributes:
        splits: ``"train"`` and, where the source has them, ``"val"`` and ``"test"``.
        class_names: K names; the label is the index.
    """

    splits: dict[str, ImageTable]
    class_names: tuple[str, ...]

    @property
    def multi_label(self) -> bool:
        """Whether a row may have several labels, or none."""
        return self.splits["train"].label_sets is not None

    def fingerprint(self) -> str:
        """Hash labels and images of every split: bytes where they are in the table, else file name and size.

        Returns:
            BLAKE2b in hexadecimal.
        """
        digest = hashlib.blake2b(digest_size=16)
        for split, table in self.splits.items():
            digest.update(repr((split, self.class_names, table.label_sets or table.labels)).encode())
            for image in table.rows[table.image_column]:
                digest.update(_identity(image))
        return digest.hexdigest()


def _identity(image: dict[str, Any] | None) -> bytes:
    if not image or not (image["bytes"] or image["path"]):
        return b"no image"
    if image["bytes"]:
        return bytes(image["bytes"])
    path = Path(image["path"])
    try:
        size = path.stat().st_size
    except OSError:  # gone, or a link to nowhere: a bad image, which on_bad_image deals with
        size = -1
    return f"{path.parent.name}/{path.name} {size}".encode()


def _canonical_splits(found: dict[str, Any]) -> dict[str, Any]:
    """Rename splits to train, val and test; the only split of a source is its train split."""
    if len(found) == 1:
        return {"train": next(iter(found.values()))}
    known = {split: found[name] for split, name in by_split(found).items()}
    if "train" not in known:
        raise ValueError(f"the source has no train split, only {', '.join(found)}; name one of them 'train'")
    return known


def _find_columns(rows: datasets.Dataset, image: str | None, label: str | None) -> tuple[str, str]:
    """Return the columns of images and labels: those given, or the only image column and the usual label names."""
    import datasets as hf

    images = [name for name, feature in rows.features.items() if isinstance(feature, hf.Image)]
    images = images or [name for name in IMAGE_COLUMNS if name in rows.features and name != label]
    declared = {name: getattr(feature, "feature", feature) for name, feature in rows.features.items()}
    labels = [name for name, feature in declared.items() if isinstance(feature, hf.ClassLabel)]
    labels = labels or [name for name in LABEL_COLUMNS if name in rows.features]
    for kind, given, candidates in (("image", image, images), ("label", label, labels)):
        if given is not None and given not in rows.features:
            raise unknown_name(f"{kind} column", given, rows.column_names)
        if given is None and len(candidates) != 1:
            raise ValueError(f"cannot tell the {kind} column among {', '.join(rows.column_names)}; pass {kind}_column=")
    return image or images[0], label or labels[0]


def _image_rows(rows: datasets.Dataset, image: str) -> datasets.Dataset:
    """Keep the images alone, encoded as they are."""
    import datasets as hf

    try:
        return rows.select_columns([image]).cast_column(image, hf.Image(decode=False))
    except (NotImplementedError, TypeError, ValueError) as error:  # Arrow's errors are of these kinds
        found = rows.features[image]
        raise ValueError(f"column {image!r} must hold images, it holds {found}; pass image_column=") from error


def _from_datasets(found: dict[str, datasets.Dataset], image: str | None, label: str | None) -> Source:
    """Build a source from HF datasets by split."""
    import datasets as hf

    splits = {name: rows.with_format(None) for name, rows in _canonical_splits(found).items() if len(rows)}
    if "train" not in splits:
        raise ValueError("the train split is empty; it must have images of every class")
    image, label = _find_columns(splits["train"], image, label)
    for name, rows in splits.items():
        if absent := [column for column in (image, label) if column not in rows.column_names]:
            raise ValueError(f"the {name} split has no column {absent[0]!r}, only {', '.join(rows.column_names)}")
    images = {name: _image_rows(rows, image) for name, rows in splits.items()}
    if isinstance(splits["train"].features[label], hf.List):
        names, sets = number_label_sets(splits, label)
        numbers = {name: rarest_labels(found, len(names)) for name, found in sets.items()}
        tables = {name: ImageTable(rows, image, numbers[name], sets[name]) for name, rows in images.items()}
    else:
        names, labels = number_labels(splits, label)
        tables = {name: ImageTable(rows, image, labels[name]) for name, rows in images.items()}
    return _checked(Source(tables, names))


def _checked(source: Source) -> Source:
    train = source.splits["train"]
    labels = train.labels if train.label_sets is None else [label for labels in train.label_sets for label in labels]
    present = {source.class_names[label] for label in labels} or {"none"}
    if len(present) < 2:
        raise ValueError(f"the train split has one class only ({present.pop()!r}); there is nothing to classify")
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


def _load_hub(source: str) -> dict[str, datasets.Dataset]:
    """Load a data set of the hub, or of the hub's cache, by its id."""
    import datasets as hf

    return dict(hf.load_dataset(source))


def _hub(source: str, image: str | None, label: str | None) -> Source:
    try:
        found = _load_hub(source)
    except Exception as error:  # the hub client has many kinds
        raise ValueError(
            f"{source!r} is neither a known name ({', '.join((*BUILT_IN, *NAMED_SETS))}) nor an existing folder, and"
            f" could not be loaded from the hub: {error}\nWithout a network: run"
            f" 'hf download --repo-type dataset {source} --local-dir DIR' where there is one, and give DIR as source"
        ) from error
    return _from_datasets(found, image, label)


def _named(source: str, image: str | None, label: str | None) -> Source:
    found = load_named(source, _load_hub)
    built = _from_datasets(found.splits, image or found.image, label or found.label)
    if found.class_names and len(found.class_names) == len(built.class_names):
        return Source(built.splits, found.class_names)
    return built


def load_source(source: str, image_column: str | None = None, label_column: str | None = None) -> Source:
    """Find a labelled set of images.

    Args:
        source: One of

            - ``"sklearn:digits"``,
            - ``"cifar10"``, ``"cifar100"``, ``"fgvc_aircraft"``, ``"dtd"``, ``"oxford_pets"``, ``"fashion_mnist"``, or
              ``"cifar100:coarse"``, ``"fgvc_aircraft:family"``, ``"dtd:7"`` (a fold) or ``"oxford_pets:species"``:
              the authors' files or tables in ``$NC_FINETUNE_DATA/<name>`` (or ``~/.cache/nc_finetune/<name>``), else
              the hub,
            - a folder of parquet or arrow files, webdataset archives, idx files, a saved HF dataset, or images: in one
              folder a class, below ``train``, ``val`` and ``test`` or directly, or with a table ``labels.csv``,
            - the path of such a table,
            - the id of a data set on the HF hub.
        image_column: Column of the images in a table; ``None`` finds it.
        label_column: Column of the labels in a table; ``None`` finds it.

    Returns:
        Splits and class names.

    Raises:
        FileNotFoundError: If the source is a path and nothing is there.
        NotADirectoryError: If it is a file of another kind.
        PermissionError: If it cannot be read.
        ValueError: If the source is unknown or damaged, or has no images, one class only, or labels out of range.
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
    if is_named(source):
        return _named(source, image_column, label_column)
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _from_datasets(read_folder(path, image_column, label_column), image_column, label_column)
        if path.is_file() and path.suffix.lower() == ".csv":
            return _from_datasets(read_table(path, image_column, label_column), image_column, label_column)
        is_file = path.exists()
    except PermissionError as error:
        raise PermissionError(f"no permission to read {error.filename or path}; change it or copy the data") from error
    if is_file:
        raise NotADirectoryError(f"{source!r} is a file; give the folder that it is in")
    if path.is_absolute() or source.startswith(".") or source.count("/") > 1:
        raise FileNotFoundError(f"no folder of images or tables at {source!r}")
    return _hub(source, image_column, label_column)
