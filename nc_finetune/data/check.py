"""What a source holds, and what is wrong with it: every image is decoded once."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from torch.utils.data import Dataset

from nc_finetune.data._pixels.image_files import looks_like_an_image, open_image
from nc_finetune.data.bad_images import BadImage, Decode
from nc_finetune.data.columns.split_names import SPLIT_NAMES, UNLABELLED
from nc_finetune.data.image_data import ImageData
from nc_finetune.data.patient_loader import PatientLoader
from nc_finetune.data.sources.tables import EncodedImages
from nc_finetune.data.splits.content_hashes import Duplicate, find_copies

SMALL_SIDE = 32


@dataclass(frozen=True)
class Inspected:
    """One image.

    Attributes:
        row: Its row in its table.
        size: Width and height in pixels.
        mode: Pillow's name of its kind of pixels, e.g. ``"RGB"``.
        reason: Why it does not decode, where it does not.
    """

    row: int
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What was found in a source.

    Attributes:
        source: The source.
        class_names: K names.
        images: Images by split, as training would have them.
        class_counts: By split, the images of each class.
        modes: Images by Pillow's mode.
        widths: Smallest, median and largest width in pixels.
        heights: Likewise.
        small: Images with a side below 32 pixels.
        multi_label: Whether images may have several labels.
        broken: Images that do not decode, of those without a label, too.
        duplicates: Images that are in two splits.
        copies: Images that are twice in one split.
        rare_classes: Classes with fewer training images than were asked for, and how many they have.
        left_out: Files below the source that are no part of it.
        left_out_text: What they are, in a sentence; empty where there are none.
        absent_classes: By split, the classes that it has no image of.
        unlabelled: Images without a label, which no split has.
        groups: Number of groups; ``None`` where none were asked for.
        shared_groups: Groups that are in two splits, and which these are.
    """

    source: str
    class_names: tuple[str, ...]
    images: dict[str, int]
    class_counts: dict[str, list[int]]
    modes: dict[str, int]
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]
    small: int
    multi_label: bool
    broken: list[BadImage]
    duplicates: list[Duplicate]
    copies: list[Duplicate]
    rare_classes: dict[str, int]
    left_out: list[str]
    left_out_text: str
    absent_classes: dict[str, list[str]]
    unlabelled: int
    groups: int | None
    shared_groups: dict[str, tuple[str, ...]]

    @property
    def faults(self) -> list[str]:
        """What should be mended, a line for each kind; empty where all is well."""
        has_left_images = any(looks_like_an_image(PurePath(file)) for file in self.left_out)
        return [
            f"{len(found)} {what}"
            for found, what in (
                (
                    self.broken,
                    "images that do not decode: repair or remove them, or train with --data.on_bad_image skip",
                ),
                (self.duplicates, "images that are in two splits: accuracy on them says nothing"),
                (self.torn, "images that are there again with another label: at most one of both is right"),
                (self.rare_classes, "classes with too few training images"),
                (self.shared_groups, "groups that are in two splits: their images are trained on and tested"),
            )
            if found
        ] + ([self.left_out_text] if has_left_images else [])

    @property
    def torn(self) -> list[Duplicate]:
        """Copies within a split that have another label."""
        return [copy for copy in self.copies if not copy.same_label]

    def to_json(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {**dataclasses.asdict(self), "faults": self.faults}


def undivided(source: str, **options: Any) -> ImageData:
    """Return the images of a source in the splits that it brings along; none is drawn.

    Args:
        source: As for :class:`~nc_finetune.ImageData`.
        options: Further arguments of it.

    Example:
        >>> check_data(undivided("sklearn:digits")).images
        {'train': 1797, 'val': 0, 'test': 0}
    """
    data = ImageData(source, test_size=0, **options)
    if "val" not in data.data.splits:  # where it is, 0 would join it to the train split
        data.plan = dataclasses.replace(data.plan, val_size=0)
    return data


class _Inspection(Dataset[Inspected]):
    def __init__(self, table: EncodedImages, rows: Sequence[int], decode: Decode) -> None:
        self.table = table
        self.rows = rows
        self.decode = decode

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> Inspected:
        row = self.rows[item]
        encoded = self.table.encoded(row)
        try:
            self.decode(encoded)  # as training does
            with open_image(encoded) as image:
                return Inspected(row, image.size, image.mode)
        except Exception as error:  # every codec has its own kinds
            return Inspected(row, reason=str(error))


def check_data(data: ImageData, *, min_per_class: int = 5, num_workers: int = 0) -> DataReport:
    """Decode every image of a source once, and count.

    Args:
        data: The source and its splits.
        min_per_class: Fewer training images make a class rare.
        num_workers: Processes that decode.

    Returns:
        What was found.

    Example:
        >>> report = check_data(ImageData("sklearn:digits"))
        >>> report.images, report.widths, report.faults
        ({'train': 1294, 'val': 144, 'test': 359}, (8, 8, 8), [])
    """
    images = {split: data.images(split) for split in SPLIT_NAMES}
    decode = images["train"].decode
    looked_at = [(split, _Inspection(rows.table, rows.indices, decode)) for split, rows in images.items()]
    for table in data.data.unlabelled.values():
        looked_at.append((UNLABELLED, _Inspection(table, range(len(table.rows)), decode)))
    found, broken = [], []
    for split, rows in looked_at:
        loader = PatientLoader(rows, batch_size=64, num_workers=num_workers, collate_fn=list)
        inspected = [one for batch in loader for one in batch]
        found += [one for one in inspected if one.reason is None]
        broken += [
            BadImage(split, one.row, rows.table.encoded(one.row)["path"], one.reason)
            for one in inspected
            if one.reason is not None
        ]
    summary = data.summary
    counts = {split: rows.class_counts(data.num_classes) for split, rows in images.items()}
    return DataReport(
        source=data.source,
        class_names=data.class_names,
        images={split: len(rows) for split, rows in images.items()},
        class_counts=counts,
        modes=dict(Counter(one.mode for one in found).most_common()),
        widths=_range([one.size[0] for one in found]),
        heights=_range([one.size[1] for one in found]),
        small=sum(min(one.size) < SMALL_SIDE for one in found),
        multi_label=data.multi_label,
        broken=broken,
        duplicates=data.duplicates,
        copies=find_copies({split: (rows.table, rows.indices) for split, rows in images.items()}),
        left_out=[file.as_posix() for file in data.left_out.files],
        left_out_text=str(data.left_out) if data.left_out.files else "",
        rare_classes={
            name: count for name, count in zip(data.class_names, counts["train"], strict=True) if count < min_per_class
        },
        absent_classes=summary.absent_classes,
        unlabelled=summary.unlabelled,
        groups=summary.groups,
        shared_groups=summary.shared_groups,
    )


def _range(values: list[int]) -> tuple[int, int, int]:
    ordered = sorted(values) or [0]
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]
