"""The labelled images of a tuning: all of them but the test split, and what would spoil a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nc_finetune.data import ImageData
from nc_finetune.data.labelled_images import LabelledImages
from nc_finetune.data.splits.content_hashes import row_hashes
from nc_finetune.data.thumbnails import thumbnail_of

_SHOWN = 3


@dataclass(frozen=True)
class TestImages:
    """What the model is tested on, in the end and once.

    Attributes:
        images: The images.
        class_names: What their labels are called.
        name: Where they come from, in words.
    """

    __test__ = False  # pytest would take it for a test

    images: LabelledImages
    class_names: tuple[str, ...]
    name: str


def all_labelled(source: str, test: str | None = None, **options: Any) -> tuple[ImageData, TestImages | None]:
    """Return all labelled images of a source for training, and what is for the test.

    Args:
        source: As for :class:`~nc_finetune.ImageData`.
        test: A share or a number of images that are held out, or another source of images of the same classes; ``None``
            is the test split of the source, if it has one.
        options: Further arguments of :class:`~nc_finetune.ImageData`.

    Returns:
        The data, and their test images; ``None`` where there are none.

    Raises:
        ValueError: If the source cannot be used, images have several labels, or the other source has other classes.
    """
    size = None if test is None else _as_number(test)
    data = ImageData(source, val_size=0, test_size=0 if size is None else size, **options)
    if data.multi_label:
        raise ValueError(
            f"the images of {source} have several labels each, and tune chooses one; train them by a recipe, such as"
            " nc-finetune fit, with loss torch.nn.BCEWithLogitsLoss"
        )
    if size is not None and "test" in data.data.splits:
        raise ValueError(
            f"{source} has a test split of its own, of {len(data.test_set)} images, which is taken; leave --test {test}"
            " out"
        )
    if size is not None and len(data.test_set) == 0:
        raise ValueError(f"--test {test} holds no image of {source} out; ask for more")
    if test is None or size is not None:
        images = data.test_set
        return data, TestImages(images, data.class_names, "the test split") if len(images) else None
    return data, _same_classes(test, data, options)


def _as_number(text: str) -> int | float | None:
    if Path(text).exists():
        return None
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)
    return None


def _same_classes(source: str, data: ImageData, options: dict[str, Any]) -> TestImages:
    """Load another source, its test split or, where it has none, all of it."""
    other = ImageData(source, val_size=0, test_size=0, **{**options, "group": None})
    try:
        other.class_names  # noqa: B018 - reads what there is
    except ValueError as error:
        raise ValueError(f"--test {source}: {error}") from error
    if unknown := sorted({*other.class_names} - {*data.class_names}):
        raise ValueError(
            f"{source} has classes that {data.source} has not: {', '.join(map(repr, unknown[:_SHOWN]))}; test on images"
            " of the same classes"
        )
    return TestImages(other.test_set if len(other.test_set) else other.images("train"), other.class_names, source)


@dataclass(frozen=True)
class Hashes:
    """The hash of each image by what is in it; empty of one that cannot be read.

    Attributes:
        train: Of those that are learnt from.
        test: Of those of the test.
    """

    train: list[str]
    test: list[str]


def hashes_of(data: ImageData, test: TestImages | None) -> Hashes:
    """Read all images once, and return their hashes.

    Args:
        data: The training images.
        test: Those of the test.
    """
    train = data.images("train")
    tested = [] if test is None else row_hashes(test.images.table, test.images.indices)
    return Hashes(row_hashes(train.table, train.indices), tested)


def never_parted(groups: Sequence[str] | None, hashes: Sequence[str]) -> list[str] | None:
    """Return what no fold may part: images of a group, copies of an image, and so groups that share an image.

    Args:
        groups: The group of each image; ``None`` where there are none.
        hashes: The hash of each image; empty of one that cannot be read.

    Returns:
        A name for each image, the same for those that stay together; ``None`` where none belong together.

    Example:
        >>> never_parted(["a", "a", "b", "c", "d"], ["1", "2", "2", "", ""])
        ['a', 'a', 'a', 'c', 'd']
        >>> never_parted(None, ["1", "2", "1", ""])
        ['1', '2', '1', 'no 3']
    """
    if groups is None:
        named = [digest or f"no {place}" for place, digest in enumerate(hashes)]
        return named if len(set(named)) < len(named) else None
    above = {name: name for name in groups}

    def top(name: str) -> str:
        while above[name] != name:
            above[name] = name = above[above[name]]
        return name

    first: dict[str, str] = {}
    for name, digest in zip(groups, hashes, strict=True):
        if digest:
            above[top(name)] = top(first.setdefault(digest, name))
    return [top(name) for name in groups]


def check_images(data: ImageData, test: TestImages | None, hashes: Hashes) -> list[str]:
    """Return what would spoil a model or its test, a sentence each.

    Args:
        data: The training images.
        test: Those of the test.
        hashes: Of both.
    """
    train = data.images("train")
    names, counts = data.class_names, data.class_counts
    found: list[str] = []
    if missing := [name for name, count in zip(names, counts, strict=True) if not count]:
        found.append(f"{len(missing)} classes have no image to learn from: {listed(missing)}")
    by_hash: dict[str, list[int]] = defaultdict(list)
    for place, digest in enumerate(hashes.train):
        if digest:
            by_hash[digest].append(place)
    labels = train.labels
    torn = [places for places in by_hash.values() if len({labels[place] for place in places}) > 1]
    if torn:
        classes = [sorted({names[labels[place]] for place in places}) for places in torn]
        said = [f"{name_of(train, p[0])} ({' and '.join(own)})" for p, own in zip(torn, classes, strict=True)]
        found.append(f"{len(torn)} images are in two classes: {listed(said)}")
    if test is not None:
        leaked = [place for place, digest in enumerate(hashes.test) if digest in by_hash]
        if leaked:
            said = [name_of(test.images, place) for place in leaked]
            found.append(f"{len(leaked)} images of {test.name} are among those to learn from: {listed(said)}")
    return found


def labelled_hashes(data: ImageData, test: TestImages | None, hashes: Hashes) -> Iterator[tuple[str, str]]:
    """Give the hash of each image, and its split and class."""
    splits = [("train", hashes.train, data.images("train"), data.class_names)]
    if test is not None:
        splits.append(("test", hashes.test, test.images, test.class_names))
    for split, digests, images, names in splits:
        for digest, label in zip(digests, images.labels, strict=True):
            yield digest, f"{split} {names[label]}"


def name_of(images: LabelledImages, place: int) -> str:
    """Return the file of an image, or its row."""
    row = images.indices[place]
    path = images.table.encoded(row)["path"]
    return Path(path).name if path else f"row {row}"


def undecoded(images: LabelledImages) -> list[str]:
    """Return the files, or the rows, of those images that did not decode so far."""
    flags = [] if images.bad is None else [bool(images.bad[row]) for row in images.indices]
    return [name_of(images, place) for place, is_bad in enumerate(flags) if is_bad]


def thumbnail(images: LabelledImages, place: int, pixels: int = 160) -> bytes:
    """Return a PNG or JPEG file of an image, so many pixels wide or high at the most; empty if it does not decode."""
    return thumbnail_of(images.table.encoded(images.indices[place]), pixels)


def listed(names: Sequence[str]) -> str:
    """Name the first few."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
