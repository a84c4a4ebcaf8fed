"""A table of corrected labels: what it says, and the source with these labels, written anew."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nc_finetune._common.csv_text import plain_cell
from nc_finetune.data.columns.split_columns import FOLDER_SPLIT
from nc_finetune.data.columns.split_names import UNLABELLED
from nc_finetune.data.columns.table_lines import read_csv
from nc_finetune.data.image_data import ImageData
from nc_finetune.data.sources.tables import EncodedImages, Source
from nc_finetune.data.splits.content_hashes import content_hash

if TYPE_CHECKING:
    import datasets

# Of a table of suspected labels; these are needed to apply it, others may be taken out.
NEEDED = ("split", "row", "label", "corrected", "image")
_CHANGED = "; the source is not the one that the table is of: look for wrong labels again"


@dataclass(frozen=True)
class Corrected:
    """What became of a table of corrections.

    Attributes:
        changed: How many images have another label now.
        images: How many labelled images there are.
        out: The folder of the new tables.
    """

    changed: int
    images: int
    out: Path


def image_key(encoded: Mapping[str, Any]) -> str:
    """Return by which text a table knows an image again, whatever it is called: a hash of its file.

    It begins with a letter that no number has: spreadsheets change what could be one.
    """
    return f"h{content_hash(encoded)}"


def apply_corrections(
    source: str,
    table: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Corrected:
    r"""Write the tables of a source with corrected labels: a parquet file a split, as ``ImageData(out)`` reads it.

    Splits, order of the rows and names of the columns stay as they are; images without a label have a table of their
    own. Images that are in the tables of the source are in the new ones; of those in files of their own the new ones
    hold the paths. The source is only read.

    Args:
        source: As for :class:`~nc_finetune.ImageData`.
        table: CSV file of ``nc-finetune data labels``. Its column ``corrected`` says the new label of each row; where
            it is empty, and for rows that are not there, the label stays.
        out: Folder of the tables; it must not be there, or be empty.
        image_column: Of the source, if it is a table; ``None`` finds it.
        label_column: Likewise.

    Returns:
        How many labels have changed.

    Raises:
        ValueError: If the table is damaged, is of other images, names a class that the source has not, or changes
            nothing; if images have several labels; if the folder holds something, or is within the source.
        FileNotFoundError: If the source or the table is not there.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> image = image_key(ImageData("sklearn:digits").data.splits["train"].encoded(7))
        >>> _ = (folder / "some.csv").write_text(f"split,row,label,corrected,image\ntrain,7,7,1,{image}\n")
        >>> apply_corrections("sklearn:digits", folder / "some.csv", folder / "mended").changed
        1
        >>> ImageData(str(folder / "mended")).data.splits["train"].labels[:8]
        [0, 1, 2, 3, 4, 5, 6, 1]
    """
    path, folder = Path(table), Path(out)
    if not path.is_file():
        raise FileNotFoundError(f"no table of corrected labels at {path}")
    found = one_label_source(source, image_column, label_column)
    check_new_folder(folder, source)
    labels = _corrected_labels(path, found)
    changed = sum(
        new != old
        for split, images in found.splits.items()
        for new, old in zip(labels[split], images.labels, strict=True)
    )
    if not changed:
        raise ValueError(
            f"{path} changes no label: write the right class into its column 'corrected' where another one is wrong"
        )
    _write(found, labels, folder)
    return Corrected(changed, sum(map(len, labels.values())), folder)


def one_label_source(source: str, image_column: str | None = None, label_column: str | None = None) -> Source:
    """Load a source with the splits that it came with, and say which of its files were left out.

    Its files have absolute paths, be it given by a relative one or not.

    Raises:
        ValueError: If its images have several labels.
    """
    found = ImageData(source, image_column=image_column, label_column=label_column).data
    if found.multi_label:
        raise ValueError(
            f"the images of {source} have several labels each, and wrong labels are looked for among images with one;"
            " name another column by label_column, or look at the labels one by one, as tables of yes and no"
        )
    return found.with_absolute_paths()


def check_new_folder(out: Path, source: str) -> None:
    """Refuse a folder that holds something, or lies within the source, which would be another one then.

    Of a source that is a table its lines count, whatever lies beside it.

    Raises:
        ValueError: If it does.
        NotADirectoryError: If it is a file.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"the results go to a folder, and {out} is a file; choose another")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(
            f"{out} holds files already, such as {min(path.name for path in out.iterdir())}; name a new folder"
            " by --out (out=), or move them away"
        )
    place = Path(source).expanduser()
    if place.is_dir() and out.resolve().is_relative_to(place.resolve()):
        raise ValueError(f"{out} lies within {place}, which is read as the source; choose a folder elsewhere")


def _corrected_labels(path: Path, source: Source) -> dict[str, list[int]]:
    """Return the labels of every split as the table says; each line is checked before any counts."""
    names, lines = read_csv(path)
    if not lines:
        raise ValueError(f"{path} has no rows: nothing to correct")
    if missing := [name for name in NEEDED if name not in names]:
        raise ValueError(
            f"{path} has no column {missing[0]!r}, only {', '.join(names)}; give the table that nc-finetune data labels"
            " has written"
        )
    classes = {name: label for label, name in enumerate(source.class_names)}
    # As the table has them; and as a person types them.
    classes = {str(plain_cell(name)).strip(): label for name, label in classes.items()} | classes
    labels = {split: list(table.labels) for split, table in source.splits.items()}
    seen: set[tuple[str, int]] = set()
    for number, cells in lines:
        where = f"{path}, line {number}"
        split, row = _place(cells, source, where)
        if (split, row) in seen:
            raise ValueError(f"{where}: row {row} of {split} is there twice; keep one line of it")
        seen.add((split, row))
        table = source.splits[split]
        if cells["image"] != image_key(table.encoded(row)):
            raise ValueError(f"{where}: row {row} of {split} is another image{_CHANGED}")
        if classes.get(cells["label"]) != table.labels[row]:
            now = source.class_names[table.labels[row]]
            raise ValueError(
                f"{where}: row {row} of {split} is labelled {now!r} by now, not {cells['label']!r}{_CHANGED}"
            )
        if cells["corrected"]:
            labels[split][row] = _label(cells["corrected"], classes, source, where)
    return labels


def _place(cells: Mapping[str, str], source: Source, where: str) -> tuple[str, int]:
    split, row = cells["split"], cells["row"]
    if split not in source.splits:
        raise ValueError(f"{where}: there is no split {split!r}, only {', '.join(source.splits)}{_CHANGED}")
    number = len(source.splits[split].labels)
    if not row.isdecimal() or int(row) >= number:
        raise ValueError(f"{where}: there is no row {row} of {split}, which has rows 0 to {number - 1}{_CHANGED}")
    return split, int(row)


def _label(name: str, classes: Mapping[str, int], source: Source, where: str) -> int:
    if name not in classes:
        shown = ", ".join(map(repr, source.class_names[:10])) + (" ..." if len(source.class_names) > 10 else "")
        raise ValueError(f"{where}: there is no class {name!r}; write one of {shown}, or nothing to keep the label")
    return classes[name]


def _write(source: Source, labels: Mapping[str, list[int]], out: Path) -> None:
    """Write the tables to a hidden folder that becomes the one asked for, or where it is there moves into it."""
    out = out.resolve()
    there = out.is_dir()  # it may be where a shell stands, or a volume that is mounted
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = (out if there else out.parent) / f".{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    moved: list[Path] = []
    try:
        for split, rows in _tables(source, labels).items():
            rows.to_parquet(str(temporary / f"{split}.parquet"))
        if not there:
            temporary.replace(out)
            return
        for table in sorted(temporary.iterdir(), key=lambda table: table.stem == "train"):  # nothing is read without it
            moved.append(table.replace(out / table.name))
        temporary.rmdir()
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for table in moved:
            table.unlink(missing_ok=True)
        raise


def _tables(source: Source, labels: Mapping[str, list[int]]) -> dict[str, datasets.Dataset]:
    """Return the rows of each split, and of the images without a label."""
    import datasets as hf

    name, found = source.label_column, {}
    for split, table in source.splits.items():
        features = hf.Features({name: hf.ClassLabel(names=list(source.class_names))})
        parts = [_images(table), hf.Dataset.from_dict({name: labels[split]}, features=features)]
        if table.others is not None and (kept := [other for other in table.others.column_names if other != name]):
            parts.append(table.others.select_columns(kept))
        found[split] = hf.concatenate_datasets(parts, axis=1)
    if source.unlabelled:
        found[UNLABELLED] = hf.concatenate_datasets([_images(images) for images in source.unlabelled.values()])
    return found


def _images(table: EncodedImages) -> datasets.Dataset:
    """Return the images, and beside them that their folders say no split: the name of the table does."""
    import datasets as hf

    said = hf.Dataset.from_dict(
        {FOLDER_SPLIT: [""] * len(table.rows)}, features=hf.Features({FOLDER_SPLIT: hf.Value("string")})
    )
    return hf.concatenate_datasets([table.rows.cast_column(table.image_column, hf.Image()), said], axis=1)
