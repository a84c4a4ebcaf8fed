"""The images of a source, split by split, as datasets."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from nc_finetune.data._pixels.pixel_store import PixelStore
from nc_finetune.data._pixels.transforms import DecodeAndResize
from nc_finetune.data.bad_images import BadImage, BadImages
from nc_finetune.data.labelled_images import LabelledImages, Transform
from nc_finetune.data.sources.tables import Source
from nc_finetune.data.splits.plan import SplitPlan
from nc_finetune.data.splits.summary import PlannedSplits
from nc_finetune.data.unlabelled_folder import UnlabelledImages


class SplitImages:
    """Datasets of the splits of a source, which share what is found out of its images: bad ones, and decoded pixels.

    Args:
        skip: Leave images out that do not decode; otherwise the first of them is an error.
        pixel_cache: Folder that keeps decoded images; ``None`` decodes each time.

    Attributes:
        planned: Which rows are in which split.

    Example:
        >>> from nc_finetune.data import load_source
        >>> images = SplitImages(load_source("sklearn:digits"), SplitPlan(), DecodeAndResize(16))
        >>> len(images.of("val")), images.unlabelled
        (144, None)
    """

    def __init__(
        self,
        source: Source,
        plan: SplitPlan,
        decode: DecodeAndResize,
        *,
        skip: bool = False,
        pixel_cache: Path | None = None,
    ) -> None:
        self.planned = PlannedSplits(source, plan)
        self._source = source
        self.read_by(decode, skip, pixel_cache)

    def read_by(self, decode: DecodeAndResize, skip: bool, pixel_cache: Path | None) -> None:
        """Read images in another way from now on; whether bad ones are skipped is settled once one has been read."""
        self._decode, self._skip, self._pixel_cache = decode, skip, pixel_cache
        for cached in ("_pixels", "unlabelled"):
            self.__dict__.pop(cached, None)

    @cached_property
    def bad(self) -> BadImages | None:
        """The images that did not decode so far; ``None`` where none is left out."""
        return BadImages(self._source.splits, self._decode) if self._skip else None

    def found_bad(self) -> list[BadImage]:
        """Say which images were left out so far, of those without a label, too, and why."""
        if self.bad is None:
            return []
        unlabelled: UnlabelledImages | None = self.__dict__.get("unlabelled")  # none is bad before it is read
        return [*self.bad.found(), *(() if unlabelled is None else unlabelled.found_bad())]

    def for_training(self, transform: Transform | None = None) -> LabelledImages:
        """Return the training images, augmented if there is a transform; no batch of them is empty.

        Raises:
            ValueError: If a group is in two splits.
        """
        self.planned.refuse_shared_groups()
        return self._images("train", transform, fill=True)

    def of(self, split: str) -> LabelledImages:
        """Return the images of ``"train"``, ``"val"`` or ``"test"``, without augmentation."""
        return self._images(split)

    def _images(self, split: str, transform: Transform | None = None, fill: bool = False) -> LabelledImages:
        table, indices = self.planned.rows[split]
        return LabelledImages(
            self._source.splits[table],
            indices,
            self._decode,
            transform,
            bad=None if self.bad is None else self.bad.flags[table],
            fill=fill,
            num_classes=len(self._source.class_names),
            pixels=self._pixels.get(table),
        )

    @cached_property
    def unlabelled(self) -> UnlabelledImages | None:
        """The images of the source that have no label; ``None`` where each has one."""
        tables = self._source.unlabelled.values()
        return UnlabelledImages.of_tables(tables, self._decode, self._skip) if tables else None

    def identity(self, images: LabelledImages) -> str | None:
        """Say which pixels and labels come of some of these images; ``None`` of those of another source."""
        tables = [name for name, table in self._source.splits.items() if table is images.table]
        return images.identity(f"{self._source.fingerprint()} {tables[0]}") if tables else None

    @cached_property
    def _pixels(self) -> dict[str, PixelStore]:
        if self._pixel_cache is None:
            return {}
        identity, size = f"{self._source.fingerprint()} {self._decode.identity}", self._decode.image_size
        return {
            name: PixelStore(self._pixel_cache, f"{identity} {name}", len(table.rows), size, table.stamp)
            for name, table in self._source.splits.items()
        }
