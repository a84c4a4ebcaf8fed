"""The labelled images of all splits of a source, taken together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nc_finetune.data import ImageData
from nc_finetune.data.corrections import one_label_source
from nc_finetune.data.labelled_images import LabelledImages


@dataclass(frozen=True)
class LabelledPool:
    """All labelled images, of whatever split.

    Attributes:
        data: The images, all of them in the train split.
        places: The split of each in the source, and its row there.
    """

    data: ImageData
    places: list[tuple[str, int]]

    @classmethod
    def of(cls, source: str, **options: Any) -> LabelledPool:
        """Load a source; images that do not decode are skipped.

        Args:
            source: As for :class:`~nc_finetune.ImageData`.
            options: Further arguments of it.

        Raises:
            ValueError: If it cannot be used, images have several labels, or no class has two.
        """
        found = one_label_source(source, options.get("image_column"), options.get("label_column"))
        data = ImageData(source, val_size=0, test_size=0, on_bad_image="skip", **options)
        data.data = found.with_all_in_train()
        if max(data.class_counts) < 2:
            raise ValueError(
                f"each of the {data.num_classes} classes of {source} has one image alone, and an image is judged by"
                " others of its class; classes are the names of folders, or of a column: give each at least two images"
            )
        return cls(data, [(split, row) for split, table in found.splits.items() for row in range(len(table.labels))])

    @property
    def images(self) -> LabelledImages:
        """The images, in the order of the places."""
        return self.data.images("train")

    def encoded(self, place: int) -> dict[str, Any]:
        """Return an image as it was found."""
        return self.images.table.encoded(self.images.indices[place])

    def files(self) -> list[str]:
        """Return the file of each image, relative to the source where it is below it, or its row."""
        root = Path(self.data.source).expanduser().absolute()
        root = root if root.is_dir() else root.parent
        found = []
        for name, (_, row) in zip(self.images.table.names(), self.places, strict=True):
            path = Path(name)
            below = path.is_absolute() and path.is_relative_to(root)
            found.append(str(path.relative_to(root)) if below else name or f"row {row}")
        return found

    def __str__(self) -> str:
        splits = Counter(split for split, _ in self.places)
        parts = f" ({', '.join(f'{split} {number:,}' for split, number in splits.items())})" if len(splits) > 1 else ""
        return f"{len(self.places):,} images of {sum(map(bool, self.data.class_counts))} classes{parts}"
