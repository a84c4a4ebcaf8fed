"""What a local folder holds, by split: a saved HF dataset, tables, archives, idx files, or images with their labels."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nc_finetune.data.file_listing import visible_files
from nc_finetune.data.idx_files import is_idx_folder, read_idx_folder
from nc_finetune.data.image_files import is_image_file
from nc_finetune.data.label_tables import LabelTable, find_label_tables

if TYPE_CHECKING:
    import datasets

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
TABLE_KINDS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}


def by_split(names: Iterable[str]) -> dict[str, str]:
    """Tell which name stands for which split; upper and lower case are the same.

    Args:
        names: Names of splits or folders; those that stand for no split are left out.

    Returns:
        The name of ``"train"``, ``"val"`` and ``"test"``, as far as they occur.

    Raises:
        ValueError: If two names stand for the same split.

    Example:
        >>> by_split(["dev", "Train", "extra"])
        {'train': 'Train', 'val': 'dev'}
    """
    known = list(names)
    found = {split: [name for name in known if name.lower() in aliases] for split, aliases in SPLIT_NAMES.items()}
    for split, same in found.items():
        if len(same) > 1:
            raise ValueError(f"{' and '.join(map(repr, same))} both name the {split} split; rename or remove one")
    return {split: same[0] for split, same in found.items() if same}


def read_folder(
    path: Path, image_column: str | None = None, label_column: str | None = None
) -> dict[str, datasets.Dataset]:
    """Read what a folder holds.

    Args:
        path: A folder with a saved HF dataset, parquet or arrow files, webdataset archives (``.tar``), idx files, or
            images in one folder a class or with a table of labels (:class:`~nc_finetune.data.label_tables.LabelTable`).
            Hidden files are left out.
        image_column: Column of the images in a table of labels.
        label_column: Column of its labels.

    Returns:
        HF datasets by split; those of images have the columns ``image`` and ``label``.

    Raises:
        ValueError: If there is nothing to read, it is damaged, or its splits cannot be told.
        PermissionError: If a part of the folder cannot be listed.
    """
    import datasets as hf

    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = _readable(path, lambda: hf.load_from_disk(str(path)))
        return dict(saved) if isinstance(saved, hf.DatasetDict) else {"train": saved}
    files = visible_files(path)
    if tables := [file for file in files if file.suffix.lower() in TABLE_KINDS]:
        return _read_tables(path, tables)
    if is_idx_folder(files):
        return read_idx_folder(path, files)
    if labels := find_label_tables(files, SPLIT_NAMES):
        by_path = {split: path / table for split, table in labels.items()}
        return LabelTable(path, files, image_column, label_column).read(by_path)
    return _read_images(path, files)


def read_table(path: Path, image_column: str | None = None, label_column: str | None = None) -> dict[str, Any]:
    """Read the images that a table of labels names, from the folder that it is in.

    Args:
        path: The CSV file.
        image_column: Column of the images.
        label_column: Column of the labels.

    Returns:
        HF datasets by split.
    """
    folder = path.parent
    return LabelTable(folder, visible_files(folder), image_column, label_column).read({"": path})


def _readable(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # HF datasets, Arrow and JSON have each their own kinds
        cause = str(error.__cause__ or error).partition("\n")[0]
        raise ValueError(
            f"the tables in {path} cannot be read: {cause}; replace those that are damaged or empty"
        ) from error


def _read_tables(path: Path, files: list[Path]) -> dict[str, datasets.Dataset]:
    """Read parquet files, arrow files or archives; where no name tells of a split, all of them are train."""
    import datasets as hf

    kinds = {TABLE_KINDS[file.suffix.lower()] for file in files}
    if len(kinds) > 1:
        raise ValueError(f"{path} holds {' and '.join(sorted(kinds))} files; keep one kind")
    splits = {file: _split_of_table(file) for file in files}
    unnamed = [file for file, split in splits.items() if split is None]
    if 0 < len(unnamed) < len(files):
        raise ValueError(f"cannot tell the split of {path / unnamed[0]} beside files that name theirs; rename it")
    by_name: dict[str, list[str]] = {}
    for file, split in splits.items():
        # HF datasets takes every name as a pattern.
        by_name.setdefault(split or "train", []).append(glob.escape(str(path / file)))
    return dict(_readable(path, lambda: hf.load_dataset(kinds.pop(), data_files=by_name)))


def _split_of_table(file: Path) -> str | None:
    """Tell the split from a word of a table's name, or else of its folders: ``test-00000-of-00001.parquet``."""
    words = [word for part in (file.stem, *reversed(file.parts[:-1])) for word in re.findall("[a-z]+", part.lower())]
    return next((split for word in words for split, aliases in SPLIT_NAMES.items() if word in aliases), None)


def _read_images(path: Path, files: list[Path]) -> dict[str, datasets.Dataset]:
    """Read one folder a class, in one folder a split or directly; a class may be absent from a split."""
    import datasets as hf

    wanted = "expected one folder a class with .jpg, .png, .webp or another kind of images that Pillow decodes"
    images = [file for file in files if is_image_file(file) and len(file.parts) > 1]
    if not images:
        raise ValueError(
            f"{path} holds no parquet or arrow files and no folders of images; {wanted}, or a table labels.csv"
        )
    classes: dict[str, dict[str, str]] = {}
    for split, folder in _split_folders(path, images).items():
        depth = len(folder.parts)
        inside = [file for file in images if file.parts[:depth] == folder.parts and len(file.parts) > depth + 1]
        if not inside:
            raise ValueError(f"no images in the folders of {path / folder}; {wanted}")
        classes[split] = {str(path / file): file.parts[depth] for file in inside}
    names = sorted({name for by_file in classes.values() for name in by_file.values()})
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=names)})
    return {
        split: hf.Dataset.from_dict({"image": list(by_file), "label": list(by_file.values())}, features)
        for split, by_file in classes.items()
    }


def _split_folders(path: Path, images: list[Path]) -> dict[str, Path]:
    """Return the folder of each split, relative to the path; without folders of splits, all of it is train.

    A class may be called ``train``: it is the split where it holds folders of images, and either another folder is
    named like a split or no other folder has images.
    """
    found = by_split(sorted(entry.name for entry in path.iterdir() if entry.is_dir()))
    others = {file.parts[0] for file in images} - set(found.values())
    nested = any(file.parts[0] == found.get("train") and len(file.parts) > 2 for file in images)
    if others and not (nested and len(found) > 1):
        return {"train": Path()}
    if "train" not in found:
        raise ValueError(f"{path} has no train split, only {', '.join(found.values())}; name one of them 'train'")
    return {split: Path(name) for split, name in found.items()}
