"""From what was found somewhere to labelled images with the splits and classes that they came with."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

from nc_finetune.data.columns.image_columns import find_columns, image_columns, label_columns, one_column
from nc_finetune.data.columns.labels import is_no_label, number_label_sets, number_labels, rarest_labels
from nc_finetune.data.columns.split_columns import FOLDER_SPLIT, divide_by_columns
from nc_finetune.data.columns.split_names import UNLABELLED, by_split, split_of
from nc_finetune.data.sources.locations import find_splits
from nc_finetune.data.sources.tables import EncodedImages, ImageTable, Source
from nc_finetune.errors import DataWarning

if TYPE_CHECKING:
    import datasets


def _canonical_splits(found: dict[str, Any]) -> dict[str, Any]:
    """Rename splits to train, val, test and unlabelled; the only split of a source is its train split."""
    if len(found) == 1:
        return {"train": next(iter(found.values()))}
    names = by_split(found)
    known = {split: found[name] for split, name in names.items()}
    if "train" not in known:
        raise ValueError(f"the source has no train split, only {', '.join(found)}; name one of them 'train'")
    if left := [name for name in found if name not in names.values()]:
        warnings.warn(
            f"the source has splits that are none of train, val and test, and are left out: {', '.join(left)}",
            DataWarning,
            stacklevel=2,
        )
    return known


def _image_rows(rows: datasets.Dataset, image: str) -> datasets.Dataset:
    """Keep the images alone, encoded as they are."""
    import datasets as hf

    try:
        return rows.select_columns([image]).cast_column(image, hf.Image(decode=False))
    except (NotImplementedError, TypeError, ValueError) as error:  # Arrow's errors are of these kinds
        found = rows.features[image]
        raise ValueError(
            f"column {image!r} must hold images, it holds {found}; pass image_column=, which is --image-column on the"
            " command line"
        ) from error


def _from_datasets(found: dict[str, datasets.Dataset], image: str | None, label: str | None) -> Source:
    """Build a source from HF datasets by split."""
    import datasets as hf

    splits, image, label = _divided(found, image, label)
    others = {name: _other_columns(rows, image) for name, rows in splits.items()}
    images = {name: _image_rows(rows, image) for name, rows in splits.items()}
    labelled = {name: rows for name, rows in splits.items() if label in rows.features and name != UNLABELLED}
    several = isinstance(splits["train"].features[label], hf.List)
    names, labels = (number_label_sets if several else number_labels)(labelled, label)
    tables: dict[str, ImageTable] = {}
    unlabelled: dict[str, EncodedImages] = {}
    for name, rows in images.items():
        values: list[Any] = list(labels.get(name, [None] * len(rows)))
        known = [row for row, value in enumerate(values) if value is not None]
        if len(known) < len(rows):
            rest = [row for row, value in enumerate(values) if value is None]
            unlabelled[name] = EncodedImages(rows.select(rest), image)
        if not known:
            continue
        kept = [values[row] for row in known]
        numbers, sets = (rarest_labels(kept, len(names)), kept) if several else (kept, None)
        rest_of_row = others[name]
        tables[name] = ImageTable(
            _some(rows, known), image, numbers, sets, None if rest_of_row is None else _some(rest_of_row, known)
        )
    source = _checked(Source(tables, names, unlabelled, label))
    _say_what_has_no_label(unlabelled, tables)
    return source


def _some(rows: datasets.Dataset, chosen: list[int]) -> datasets.Dataset:
    return rows if len(chosen) == len(rows) else rows.select(chosen)


def _divided(
    found: dict[str, datasets.Dataset], image: str | None, label: str | None
) -> tuple[dict[str, datasets.Dataset], str, str]:
    """Return the rows of each split, of which none is empty, and the columns of images and labels."""
    splits = {name: rows.with_format(None) for name, rows in _canonical_splits(found).items() if len(rows)}
    if "train" not in splits:
        raise ValueError("the train split is empty; it must have images of every class")
    image, label = find_columns(splits["train"], image, label)
    for name, rows in splits.items():
        if image not in rows.features or (label not in rows.features and label_columns(rows)):
            lacking = label if image in rows.features else image
            raise ValueError(f"the {name} split has no column {lacking!r}, only {', '.join(rows.column_names)}")
    splits = divide_by_columns(splits, {image, label}, only=len(found) == 1)
    if "train" not in splits:
        raise ValueError(f"the source has no row for training, only for {' and '.join(splits)}; mend its splits")
    order = ("train", "val", "test", UNLABELLED)
    return {name: splits[name] for name in sorted(splits, key=order.index)}, image, label


def _other_columns(rows: datasets.Dataset, image: str) -> datasets.Dataset | None:
    others = [name for name in rows.column_names if name not in (image, FOLDER_SPLIT)]
    return rows.select_columns(others) if others else None


def _say_what_has_no_label(unlabelled: dict[str, EncodedImages], tables: dict[str, ImageTable]) -> None:
    for name, images in unlabelled.items():
        number = len(images.rows)
        if name in tables:
            total = number + len(tables[name].labels)
            said = f"{number} of the {total} images of the {name} split have no label, and are left out of it"
        elif name in ("val", "test"):
            said = f"the {name} split has no labels and counts as none; its {number} images are left out"
        else:
            said = f"{number} images without labels are left out"
        warnings.warn(f"{said}; predicting is for them", DataWarning, stacklevel=2)


def _checked(source: Source) -> Source:
    if "train" not in source.splits:
        raise ValueError("the train split has no labels; there is nothing to learn from")
    present = {name: _classes_of(table) for name, table in source.splits.items()}
    if len(present["train"]) < 2:
        one = source.class_names[present["train"].pop()] if present["train"] else "none"
        raise ValueError(f"the train split has one class only ({one!r}); there is nothing to classify")
    for name, labels in present.items():
        if labels and not labels & present["train"]:
            shown = ", ".join(repr(source.class_names[label]) for label in sorted(labels)[:5])
            raise ValueError(
                f"no class of the {name} split is in the train split: {shown}; give classes the same names in both, or"
                " put images without labels directly into the folder of their split"
            )
    return source


def _classes_of(table: ImageTable) -> set[int]:
    return {label for row in range(len(table.labels)) for label in table.labels_of(row)}


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
              ``metadata.csv`` or ``metadata.jsonl``, or one a split,
            - the path of such a table,
            - the id of a data set on the HF hub.
        image_column: Column of the images in a table; ``None`` finds it.
        label_column: Column of the labels in a table; ``None`` finds it.

    Returns:
        Splits and class names. What the source says of its splits, in names, folders or a column, is never overruled;
        rows without a label are apart, as ``unlabelled``.

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
    found = find_splits(source, image_column, label_column)
    built = _from_datasets(found.splits, image_column or found.image, label_column or found.label)
    if found.class_names and len(found.class_names) == len(built.class_names):
        return dataclasses.replace(built, class_names=found.class_names)
    return built


def load_unlabelled(
    source: str, image_column: str | None = None, label_column: str | None = None
) -> dict[str, EncodedImages]:
    """Find the images of a source that have no label, or where all of them have one, or none has, all of them.

    Sources and columns are those of :func:`load_source`; no column of labels and no split is needed.

    Returns:
        Images by the split that they are in.

    Raises:
        ValueError: As for :func:`load_source`.
    """
    found = find_splits(source, image_column, label_column, labels_needed=False)
    image_column, label_column = image_column or found.image, label_column or found.label
    splits = {name: rows.with_format(None) for name, rows in found.splits.items() if len(rows)}
    everything, unlabelled = {}, {}
    for name, rows in splits.items():
        image = one_column("image", rows, image_column, image_columns(rows, label_column))
        labels = [label_column] if label_column in rows.features else label_columns(rows)
        without = [
            row for row, value in enumerate(rows[labels[0]] if labels else [None] * len(rows)) if is_no_label(value)
        ]
        images = _image_rows(rows, image)
        everything[name] = EncodedImages(images, image)
        if without or split_of(name) == UNLABELLED:
            unlabelled[name] = EncodedImages(images.select(without) if split_of(name) != UNLABELLED else images, image)
    return unlabelled or everything
