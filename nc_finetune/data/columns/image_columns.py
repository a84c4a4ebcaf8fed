"""Which columns of a table hold images and labels, and where the files are that a column of images names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from nc_finetune.data.columns.split_columns import FOLDER_SPLIT, folder_split, is_split_column
from nc_finetune.errors import check_name

if TYPE_CHECKING:
    import datasets

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "class", "target", "cls")
FILE_COLUMNS = ("file_name", "filename", "file", "path", "image_path", "image", "image_id", "id")


def find_columns(rows: datasets.Dataset, image: str | None, label: str | None) -> tuple[str, str]:
    """Return the columns of images and labels: those given, or the only image column and the usual label names."""
    return one_column("image", rows, image, image_columns(rows, label)), one_column(
        "label", rows, label, label_columns(rows)
    )


def image_columns(rows: datasets.Dataset, label: str | None = None) -> list[str]:
    """Return the columns that may hold the images, of which the label is none."""
    import datasets as hf

    images = [name for name, feature in rows.features.items() if isinstance(feature, hf.Image)]
    return images or [name for name in IMAGE_COLUMNS if name in rows.features and name != label]


def label_columns(rows: datasets.Dataset) -> list[str]:
    """Return the columns that may hold the labels."""
    import datasets as hf

    declared = {name: getattr(feature, "feature", feature) for name, feature in rows.features.items()}
    labels = [
        name
        for name, feature in declared.items()
        if isinstance(feature, hf.ClassLabel) and not is_split_column(name, feature.names)
    ]
    return labels or [name for name in LABEL_COLUMNS if name in rows.features]


def one_column(kind: str, rows: datasets.Dataset, given: str | None, candidates: list[str]) -> str:
    """Return the column that is given, or the only candidate.

    Raises:
        ValueError: If there is no such column, or not one candidate.
    """
    if given is not None:
        check_name(f"{kind} column", given, rows.column_names)
    if given is None and len(candidates) != 1:
        raise ValueError(
            f"cannot tell the {kind} column among {', '.join(rows.column_names)}; pass {kind}_column=, which is"
            f" --{kind}-column on the command line"
        )
    return given or candidates[0]


def with_whole_paths(rows: datasets.Dataset, image_column: str | None, folder: Path, root: Path) -> datasets.Dataset:
    """Make the paths of a table of files whole, and note the split of each folder where none is noted.

    Args:
        rows: A table; one that holds the images themselves comes back as it is.
        image_column: Its column of images; ``None`` finds it.
        folder: Where the table is.
        root: The source: paths may be relative to it, too.

    Returns:
        The table with a column of images by their files, and one of splits.

    Raises:
        ValueError: If no file is where the table says.
    """
    import datasets as hf

    column = _image_column(rows, image_column)
    paths = None if column is None else _paths(rows, column)
    if column is None or paths is None:
        return rows
    whole = [path if path is None or _is_whole(path) else _found(path, folder, root) for path in paths]
    first = next((path for path in paths if path is not None and not _is_whole(path)), None)
    if first is not None and not any(path is not None and Path(path).exists() for path in whole):
        raise ValueError(
            f"no image that the column {column!r} of the table in {folder} names is there, the first is {first!r};"
            f" paths are relative to the table or to {root}"
        )
    splits = list(rows[FOLDER_SPLIT]) if FOLDER_SPLIT in rows.features else _folder_splits(paths, folder)
    features = hf.Features({column: hf.Image(), FOLDER_SPLIT: hf.Value("string")})
    images = hf.Dataset.from_dict({column: whole, FOLDER_SPLIT: splits}, features=features)
    others = rows.select_columns([name for name in rows.column_names if name not in images.column_names])
    return hf.concatenate_datasets([images, others], axis=1) if others.column_names else images


def names_files(rows: datasets.Dataset, image_column: str | None) -> bool:
    """Tell a table that names files of images from one that holds the images."""
    column = _image_column(rows, image_column)
    return column is not None and _paths(rows, column) is not None


def _image_column(rows: datasets.Dataset, given: str | None) -> str | None:
    if given is not None:
        return given if given in rows.features else None
    images = image_columns(rows)
    files = [
        name for name in FILE_COLUMNS if getattr(rows.features.get(name), "dtype", "") in ("string", "large_string")
    ]
    return images[0] if len(images) == 1 else (files[0] if files and not images else None)


def _paths(rows: datasets.Dataset, column: str) -> list[str | None] | None:
    """Return the paths of a column that holds no images but names them; else ``None``."""
    import datasets as hf

    feature = rows.features[column]
    if getattr(feature, "dtype", "") in ("string", "large_string"):
        found: list[str | None] = rows[column][:]
        return found
    if not isinstance(feature, hf.Image) and not (isinstance(feature, dict) and {"bytes", "path"} <= set(feature)):
        return None
    if any(chunk.field("bytes").null_count < len(chunk) for chunk in rows.data.column(column).chunks):
        return None
    encoded = rows.cast_column(column, hf.Image(decode=False)) if isinstance(feature, hf.Image) else rows
    paths = [None if value is None else value["path"] for value in encoded[column]]
    return paths if any(paths) else None


def _is_whole(path: str) -> bool:
    return Path(path).is_absolute() or "://" in path


def _found(path: str, folder: Path, root: Path) -> str:
    """Return where a relative path leads, from the table, the source or here; where to nothing, from the table."""
    places = [folder / path, root / path, Path(path)]
    return str(next((place for place in places if place.exists()), places[0]))


def _folder_splits(paths: list[str | None], folder: Path) -> list[str]:
    """Return the split of the folder of each image; a folder that is above all of them says nothing."""
    return [
        folder_split(PurePosixPath(path), f"row {row} of the table in {folder}")
        for row, path in enumerate(below_one_folder([path or "" for path in paths]))
    ]


def below_one_folder(paths: Sequence[str]) -> list[str]:
    """Return paths relative to the folder that all of the absolute ones are in; others as they are.

    Example:
        >>> below_one_folder(["/data/a/1.png", "/data/b/2.png", ""])
        ['a/1.png', 'b/2.png', '']
    """
    whole = [str(Path(path).parent) for path in paths if Path(path).is_absolute()]
    above = os.path.commonpath(whole) if whole else ""
    return [path.removeprefix(above).lstrip("/") if Path(path).is_absolute() else path for path in paths]
