"""Which columns of a table hold the images and the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nc_finetune.data.columns.split_columns import is_split_column
from nc_finetune.errors import unknown_name

if TYPE_CHECKING:
    import datasets

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "class", "target", "cls")


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
    if given is not None and given not in rows.features:
        raise unknown_name(f"{kind} column", given, rows.column_names)
    if given is None and len(candidates) != 1:
        raise ValueError(f"cannot tell the {kind} column among {', '.join(rows.column_names)}; pass {kind}_column=")
    return given or candidates[0]
