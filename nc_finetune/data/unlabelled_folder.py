"""Images in a folder that nobody has labelled."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nc_finetune.data.file_listing import visible_files
from nc_finetune.data.image_files import is_image_file
from nc_finetune.data.labelled_images import OnBadImage, SkippingLoader, collate, shared_flags
from nc_finetune.data.left_out import LeftOut
from nc_finetune.data.transforms import INTERPOLATIONS, DecodeAndResize
from nc_finetune.errors import unknown_name


class _Images(Dataset[Tensor]):
    def __init__(self, paths: Sequence[Path], decode: DecodeAndResize, bad: Tensor | None) -> None:
        self.paths = paths
        self.decode = decode
        self.bad = bad

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> Tensor:
        path = self.paths[item]
        try:
            return self.decode({"bytes": None, "path": str(path)})
        except Exception as error:  # every codec has its own kinds
            raise ValueError(
                f"the image {path} does not decode: {error}; repair or remove it, or set on_bad_image='skip'"
            ) from error

    def __getitems__(self, items: Sequence[int]) -> list[Tensor]:
        """Return the images of a batch, without those that are to be skipped."""
        if self.bad is None:
            return [self[item] for item in items]
        found = []
        for item in items:
            try:
                found.append(self[item])
            except ValueError:
                self.bad[item] = 1
        return found


class UnlabelledFolder(L.LightningDataModule):
    """All images below a folder, for ``trainer.predict``: batches of uint8, shape ``(N, 3, image_size, image_size)``.

    Args:
        folder: Where the images are, in any depth; hidden files are left out, and with a warning files of
            other kinds.
        class_names: K names of the classes that a model tells apart.
        image_size: Height and width of the images in pixels.
        interpolation: Filter for resizing.
        batch_size: Images a batch.
        num_workers: Processes that decode; 0 decodes in the main process.
        on_bad_image: What becomes of images that do not decode: ``"raise"`` or ``"skip"``.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If it holds no images, or an argument is out of range.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        class_names: Sequence[str],
        *,
        image_size: int = 224,
        interpolation: str = "bicubic",
        batch_size: int = 32,
        num_workers: int = 0,
        on_bad_image: OnBadImage = "raise",
    ) -> None:
        super().__init__()
        if interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
        if min(image_size, batch_size) < 1:
            raise ValueError(f"image_size and batch_size must be at least 1, got {image_size} and {batch_size}")
        root = Path(folder)
        if not root.is_dir():
            raise NotADirectoryError(f"no folder of images at {root}")
        files = visible_files(root)
        found = [file for file in files if is_image_file(file)]
        if not found:
            raise ValueError(f"{root} holds no images of a kind that Pillow decodes, as .jpg, .png and .webp")
        if (left_out := LeftOut.of(files, found)).files:
            warnings.warn(f"{root}: {left_out}", stacklevel=2)
        self.class_names = tuple(class_names)
        self._files = tuple(file.as_posix() for file in found)
        skip = on_bad_image == "skip"
        self._bad = shared_flags(len(found)) if skip else None
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._images = _Images([root / file for file in found], DecodeAndResize(image_size, interpolation), self._bad)

    @property
    def files(self) -> tuple[str, ...]:
        """The images relative to the folder, in the order of the batches, without those that were skipped."""
        bad = [0] * len(self._files) if self._bad is None else self._bad.tolist()
        return tuple(file for file, is_bad in zip(self._files, bad, strict=True) if not is_bad)

    @property
    def skipped(self) -> tuple[str, ...]:
        """The images that did not decode so far."""
        return tuple(sorted(set(self._files) - set(self.files)))

    def predict_dataloader(self) -> DataLoader[Tensor]:
        """Return the images in the order of ``files``."""
        return SkippingLoader(
            self._images, batch_size=self.batch_size, num_workers=self.num_workers, collate_fn=collate
        )
