"""That no command writes over what it reads."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path


def refuse_overwriting(outs: Iterable[Path | None], *inputs: str | Path | None) -> None:
    """Refuse to write over a model or over images and labels that are read, before anything is done.

    Of a folder its ``model.safetensors``, images, tables of them and tables of labels are read; what else is in it, as
    the predictions of an earlier time, may be written again.

    Args:
        outs: Files that are to be written; ``None`` is not written.
        inputs: What is read: files, folders, or names of something else, which no file can take the place of.

    Raises:
        ValueError: If a file is one of the inputs, by whatever path or link, or read from a folder among them.
    """
    for out in outs:
        for given in inputs:
            if out is not None and given is not None and _is_read(out, Path(given)):
                raise ValueError(
                    f"{out} would be written over, and is read here as {given} or a part of it; give what is written"
                    " another name"
                )


def _is_read(out: Path, given: Path) -> bool:
    given = given.expanduser()
    if not out.is_file() or not given.exists():
        return False
    return _is_read_of_folder(out, given) if given.is_dir() else out.samefile(given)


def _is_read_of_folder(out: Path, folder: Path) -> bool:
    from nc_finetune.data.columns.label_tables import TABLE_ENDINGS
    from nc_finetune.data.sources.file_listing import LeftOut, visible_files
    from nc_finetune.data.sources.folders import TABLE_KINDS
    from nc_finetune.deployment.hub import MODEL_FILE

    model, real = folder / MODEL_FILE, out.resolve()
    if model.is_file() and out.samefile(model):
        return True
    kind = real.suffix.lower()
    is_read = LeftOut((real,)).images or kind in TABLE_KINDS
    if not is_read and kind not in TABLE_ENDINGS:
        return False  # and a large folder need not be listed
    files = visible_files(folder)
    alike = [file for file in files if file.suffix == real.suffix and (folder / file).exists()]  # no link to nothing
    same = [file for file in alike if out.samefile(folder / file)]
    return any(is_read or _is_label_table(file, files) for file in same)


def _is_label_table(file: Path, files: Sequence[Path]) -> bool:
    from nc_finetune.data.columns.label_tables import LABEL_TABLES, find_label_tables

    if file.stem.lower() in LABEL_TABLES:  # also where another one comes first
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whoever reads the folder says it
        try:
            return file in find_label_tables(files).values()
        except ValueError:  # several could be meant
            return True
