"""Webdataset archives: tar files in which the files of a sample have one name and different endings."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from nc_finetune.data._pixels.image_files import is_image_file
from nc_finetune.data.columns.split_columns import FOLDER_SPLIT, folder_split

if TYPE_CHECKING:
    import datasets

LABEL_ENDINGS = ("cls", "label", "labels", "class", "target", "txt")
LABEL_KEYS = ("label", "labels", "class", "class_name", "category", "target", "cls")


@dataclass
class _Sample:
    """The files of a sample by their endings, as offset and size in an archive."""

    archive: Path
    name: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"the sample {self.name!r} of {self.archive}"

    def read(self, ending: str) -> bytes:
        """Return the content of one file."""
        offset, size = self.files[ending]
        with self.archive.open("rb") as archive:
            archive.seek(offset)
            return archive.read(size)

    def text(self, ending: str) -> str:
        """Return the content of one file of text."""
        try:
            return self.read(ending).decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self}: its .{ending} is no text in UTF-8: {error}; write it anew") from error


def read_archives(
    archives: Sequence[Path], image_column: str | None = None, label_column: str | None = None
) -> datasets.Dataset:
    """Read the samples of archives: an image each, of whatever ending, and its label.

    The label is the text of ``.cls`` (or ``.label``, ``.class``, ``.txt``), or in ``.json`` a key called so. Endings
    are the same in upper and lower case, and may differ from sample to sample.

    Args:
        archives: The archives of a split.
        image_column: Ending of the images, where samples have several, e.g. ``"left.png"``.
        label_column: Ending of the labels, or key in ``.json``.

    Returns:
        An HF dataset with the columns of images and labels (``image`` and ``label``, or the names that were given), the
        keys of ``.json`` as text, and ``__key__``, the name of the sample. A sample without a label has ``None``.

    Raises:
        ValueError: If an archive is damaged or empty, or a sample has no image, several images, or a damaged label; the
            message names the sample.
    """
    import datasets as hf

    samples = [sample for archive in archives for sample in _samples(archive)]
    images = [_image_ending(sample, image_column) for sample in samples]
    metadata = [_metadata(sample) for sample in samples]
    labels = [_label(sample, keys, label_column) for sample, keys in zip(samples, metadata, strict=True)]
    several = any(isinstance(label, list) for label in labels)
    image, label = image_column or "image", label_column or "label"
    hidden = {image, label, *(LABEL_KEYS if label_column is None else ())}
    others = sorted({key for keys in metadata for key, value in keys.items() if _is_plain(value)} - hidden)
    text = hf.Value("string")
    columns = {
        label: [_as_list(value) if several else value for value in labels],
        "__key__": [sample.name for sample in samples],
        FOLDER_SPLIT: [folder_split(PurePosixPath(sample.name), str(sample)) for sample in samples],
        **{key: [str(keys[key]) if keys.get(key) is not None else "" for keys in metadata] for key in others},
    }
    kinds: dict[str, Any] = dict.fromkeys(columns, text) | {label: hf.List(text) if several else text}
    return hf.concatenate_datasets(
        [_images(archives, samples, images, image), hf.Dataset.from_dict(columns, features=hf.Features(kinds))], axis=1
    )


def _samples(archive: Path) -> list[_Sample]:
    """List what is in an archive, without reading it; hidden files are left out."""
    found: dict[str, _Sample] = {}
    try:
        with tarfile.open(archive, "r:") as opened:
            members = [member for member in opened if member.isfile()]
    except (tarfile.TarError, EOFError) as error:
        raise _unreadable(archive, f": {error}") from error
    for member in members:
        path = PurePosixPath(member.name)
        stem, _, ending = path.name.partition(".")
        if not stem or not ending:
            continue
        name = str(path.parent / stem)
        sample = found.setdefault(name, _Sample(archive, name))
        if ending.lower() in sample.files:
            raise ValueError(f"{sample} has two files that end in .{ending.lower()}; give samples names of their own")
        sample.files[ending.lower()] = (member.offset_data, member.size)
    if not found:
        raise _unreadable(archive, " is empty")
    return list(found.values())


def _unreadable(archive: Path, problem: str) -> ValueError:
    return ValueError(
        f"the tables in {archive.parent} cannot be read: {archive.name}{problem}; replace those that are damaged or"
        " empty"
    )


def _image_ending(sample: _Sample, given: str | None) -> str:
    """Return the ending of the image of a sample."""
    if given is not None and given.lower() in sample.files:
        return given.lower()
    images = [ending for ending in sample.files if is_image_file(PurePosixPath(f"image.{ending}"))]
    plain = [ending for ending in images if "." not in ending] or images
    if given is not None and given != "image":
        raise ValueError(f"{sample} has no file that ends in .{given}, only .{', .'.join(sample.files)}")
    if len(plain) != 1:
        has = f"several images, .{', .'.join(plain)}" if plain else f"no image, only .{', .'.join(sample.files)}"
        raise ValueError(f"{sample} has {has}; mend the archive, or name the ending of the images with image_column=")
    return plain[0]


def _metadata(sample: _Sample) -> dict[str, Any]:
    """Return what a sample's ``.json`` says; where it is no object, it is the label."""
    if "json" not in sample.files:
        return {}
    try:
        found = json.loads(sample.text("json"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{sample}: its .json is damaged: {error}; write it anew") from error
    return found if isinstance(found, dict) else {"label": found}


def _label(sample: _Sample, metadata: dict[str, Any], given: str | None) -> Any:
    """Return the label of a sample as text, or a list of them; ``None`` where it has none."""
    endings = LABEL_ENDINGS if given is None else (given.lower(), *(LABEL_ENDINGS if given == "label" else ()))
    keys = LABEL_KEYS if given is None else (given,)
    ending = next((ending for ending in endings if ending in sample.files and ending != "txt"), None)
    key = next((key for key in keys if key in metadata), None)
    if ending is None and key is None and "txt" in endings and "txt" in sample.files:
        ending = "txt"
    value = sample.text(ending) if ending is not None else metadata.get(key or "")
    if isinstance(value, list) and all(_is_plain(part) and part is not None for part in value):
        return [str(part) for part in value]
    if not _is_plain(value):
        raise ValueError(f"{sample}: its label is {json.dumps(value)}; give a text, a number, or a list of them")
    return None if value is None or value == "" else str(value)


def _is_plain(value: Any) -> bool:
    return not isinstance(value, list | dict)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _images(archives: Sequence[Path], samples: list[_Sample], endings: list[str], column: str) -> datasets.Dataset:
    """Copy the images into a table on the disk, kept as long as the archives are the same."""
    import datasets as hf

    def rows() -> Iterator[dict[str, Any]]:
        for sample, ending in zip(samples, endings, strict=True):
            yield {column: {"bytes": sample.read(ending), "path": f"{sample.name}.{ending}"}}

    state = [(str(archive.resolve()), archive.stat().st_size, archive.stat().st_mtime_ns) for archive in archives]
    digest = hashlib.blake2b(repr((column, state, endings)).encode(), digest_size=16).hexdigest()
    found: datasets.Dataset = hf.Dataset.from_generator(
        rows, features=hf.Features({column: hf.Image()}), fingerprint=digest
    )
    return found
