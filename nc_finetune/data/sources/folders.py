"""What a local folder holds, by split: a saved HF dataset, tables, archives, idx files, or images with their labels."""

from __future__ import annotations

import glob
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nc_finetune.data._pixels.image_files import is_image_file
from nc_finetune.data.columns.image_columns import names_files, with_whole_paths
from nc_finetune.data.columns.label_tables import LabelTable, find_label_tables, say_which_are_unread
from nc_finetune.data.columns.labels import check_spellings
from nc_finetune.data.columns.split_names import UNLABELLED, by_split, split_in, split_of, words_of
from nc_finetune.data.sources.archives import read_archives
from nc_finetune.data.sources.file_listing import visible_files
from nc_finetune.data.sources.idx_files import is_idx_folder, read_idx_folder
from nc_finetune.data.sources.published_layouts import file_rows

if TYPE_CHECKING:
    import datasets

TABLE_KINDS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}


def read_folder(
    path: Path, image_column: str | None = None, label_column: str | None = None
) -> dict[str, datasets.Dataset]:
    """Read what a folder holds.

    Args:
        path: A folder with a saved HF dataset, parquet or arrow files, webdataset archives (``.tar``), idx files, or
            images in one folder a class or with a table of labels
            (:class:`~nc_finetune.data.columns.label_tables.LabelTable`). Hidden files are left out.
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
        found = dict(saved) if isinstance(saved, hf.DatasetDict) else {"train": saved}
        return {split: with_whole_paths(rows, image_column, path, path) for split, rows in found.items()}
    files = visible_files(path)
    if tables := [file for file in files if file.suffix.lower() in TABLE_KINDS]:
        return _read_tables(path, tables, image_column, label_column)
    if is_idx_folder(files):
        return read_idx_folder(path, files)
    if labels := find_label_tables(files):
        by_path = {split: path / table for split, table in labels.items()}
        return LabelTable(path, files, image_column, label_column).read(by_path)
    say_which_are_unread(path, files)
    return _read_images(path, files)


def holds_tables_alone(path: Path) -> bool:
    """Tell a folder of tables, archives or idx files, with no file of an image beside them."""
    files = visible_files(path)
    return not any(map(is_image_file, files)) and (
        is_idx_folder(files) or any(file.suffix.lower() in TABLE_KINDS for file in files)
    )


def read_table(
    path: Path, image_column: str | None = None, label_column: str | None = None, labels_needed: bool = True
) -> dict[str, Any]:
    """Read the images that a table of labels names, from the folder that it is in, by split."""
    folder = path.parent
    return LabelTable(folder, visible_files(folder), image_column, label_column).read({"": path}, labels_needed)


def _readable(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # HF datasets, Arrow and JSON have each their own kinds
        cause = str(error.__cause__ or error).partition("\n")[0]
        raise ValueError(
            f"the tables in {path} cannot be read: {cause}; replace those that are damaged or empty"
        ) from error


def _read_tables(
    path: Path, files: list[Path], image_column: str | None, label_column: str | None
) -> dict[str, datasets.Dataset]:
    """Read parquet files, arrow files or archives; where no name tells of a split, all of them are train."""
    kinds = {TABLE_KINDS[file.suffix.lower()] for file in files}
    if len(kinds) > 1:
        raise ValueError(f"{path} holds {' and '.join(sorted(kinds))} files; keep one kind")
    splits = {file: _split_of_table(file) for file in files}
    unnamed = [file for file, split in splits.items() if split is None]
    if 0 < len(unnamed) < len(files):
        raise ValueError(f"cannot tell the split of {path / unnamed[0]} beside files that name theirs; rename it")
    by_name: dict[str, list[Path]] = {}
    for file, split in splits.items():
        by_name.setdefault(split or "train", []).append(path / file)
    kind = kinds.pop()
    if kind == "webdataset":
        return {split: read_archives(found, image_column, label_column) for split, found in by_name.items()}
    return {split: _read_one_split(path, kind, found, image_column) for split, found in by_name.items()}


def _read_one_split(path: Path, kind: str, files: Sequence[Path], image_column: str | None) -> datasets.Dataset:
    """Read the tables of a split; where they name files, those of each folder by themselves."""
    import datasets as hf

    # Splits by themselves: one may lack the column of labels. HF datasets takes every name as a pattern.
    def read(some: Sequence[Path]) -> datasets.Dataset:
        names = [glob.escape(str(file)) for file in some]
        rows: datasets.Dataset = _readable(path, lambda: hf.load_dataset(kind, data_files={"train": names})["train"])
        return rows

    rows = read(files)
    folders = dict.fromkeys(file.parent for file in files)
    if len(folders) == 1 or not names_files(rows, image_column):
        return with_whole_paths(rows, image_column, files[0].parent, path)
    each = {folder: read([file for file in files if file.parent == folder]) for folder in folders}
    return hf.concatenate_datasets(
        [with_whole_paths(rows, image_column, folder, path) for folder, rows in each.items()]
    )


def _split_of_table(file: Path) -> str | None:
    """Tell the split from a word of a table's name, or else of its folders: ``test-00000-of-00001.parquet``."""
    whole = next((split for part in (file.stem, *reversed(file.parts[:-1])) if (split := split_of(part))), None)
    return whole or split_in(word for part in (file.stem, *reversed(file.parts[:-1])) for word in words_of(part))


def _read_images(path: Path, files: list[Path]) -> dict[str, datasets.Dataset]:
    """Read one folder a class, in one folder a split or directly; a class may be absent from a split.

    Images that are directly in the folder of another split than train have no label.
    """
    wanted = "expected one folder a class with .jpg, .png, .webp or another kind of images that Pillow decodes"
    images = [file for file in files if is_image_file(file) and len(file.parts) > 1]
    if not images:
        raise ValueError(
            f"{path} holds no parquet or arrow files and no folders of images; {wanted}, or a table labels.csv"
        )
    classes = _by_class_and_split(path, images)
    for split, folder in _split_folders(path, images).items() if classes is None else ():
        classes = (classes or {}) | {split: _classes(images, folder, split)}
        if not classes[split]:
            raise ValueError(f"no images in the folders of {path / folder}; {wanted}")
    assert classes is not None  # noqa: S101 - for the type checker: there is a folder of a split, if only all of it
    named = {split: {name for name in by_file.values() if name is not None} for split, by_file in classes.items()}
    check_spellings(named)
    return file_rows(
        {split: [(path / file, name) for file, name in by_file.items()] for split, by_file in classes.items()}
    )


def _classes(images: list[Path], folder: Path, split: str) -> dict[Path, str | None]:
    """Return the class of each image of a split, the name of a folder; none has one where there are no such folders."""
    depth = len(folder.parts)
    of_split = [file for file in images if file.parts[:depth] == folder.parts]
    # One file system writes ä as one character, another as two: the same class.
    found: dict[Path, str | None] = {
        file: unicodedata.normalize("NFC", file.parts[depth]) for file in of_split if len(file.parts) > depth + 1
    }
    if split == UNLABELLED or (split != "train" and not found):
        return dict.fromkeys(of_split)
    return found


def _by_class_and_split(path: Path, images: list[Path]) -> dict[str, dict[Path, str | None]] | None:
    """Return classes by split where each class has folders of splits, as ``cat/train`` and ``cat/test``."""
    below: dict[str, set[str | None]] = {}
    for file in images:
        below.setdefault(file.parts[0], set()).add(split_of(file.parts[1]) if len(file.parts) > 2 else None)
    divided = [name for name, splits in below.items() if "train" in splits and len(splits - {None}) > 1]
    if not divided or any(split_of(name) for name in below):
        return None
    if any(None in splits for splits in below.values()) or any(len(file.parts) > 3 for file in images):
        raise ValueError(
            f"{path / divided[0]} has folders of splits, and other images beside or below them; give the folder that"
            " holds train and test, or put every image into train/CLASS, val/CLASS or test/CLASS"
        )
    found: dict[str, dict[Path, str | None]] = {}
    for file in images:
        name = unicodedata.normalize("NFC", file.parts[0])
        found.setdefault(str(split_of(file.parts[1])), {})[file] = name
    return found


def _split_folders(path: Path, images: list[Path]) -> dict[str, Path]:
    """Return the folder of each split, relative to the path; without folders of splits, all of it is train.

    A class may be called ``train``: it is the split where it holds folders of images, and either another folder is
    named like a split or no other folder has images.

    Raises:
        ValueError: If there is no train split, or folders may be splits as well as classes.
    """
    found = by_split(sorted(entry.name for entry in path.iterdir() if entry.is_dir()))
    below: dict[str, set[str]] = {}
    for file in images:
        below.setdefault(file.parts[0], set()).add(file.parts[1] if len(file.parts) > 2 else "")
    others = set(below) - set(found.values())
    train = below.get(found.get("train", ""), set())
    nested = bool(train - {""})
    if others and not (nested and len(found) > 1):
        alike = {name for name in found.values() for other in others if below.get(name, set()) & below[other] - {""}}
        if alike or (len(train) > 1 and "" not in train):
            raise ValueError(
                f"cannot tell whether {path / min(alike or {found['train']})} is a split or a class beside"
                f" {', '.join(repr(name) for name in sorted(others)[:5])}; call folders of splits train, val and test,"
                " and move other images away"
            )
        return {"train": Path()}
    if "train" not in found:
        raise ValueError(f"{path} has no train split, only {', '.join(found.values())}; name one of them 'train'")
    return {split: Path(name) for split, name in found.items()}
