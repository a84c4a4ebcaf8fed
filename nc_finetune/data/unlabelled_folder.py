"""Images in a folder that nobody has labelled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nc_finetune.data.folders import visible_files
from nc_finetune.data.transforms import INTERPOLATIONS, DecodeAndResize
from nc_finetune.errors import unknown_name


class _Images(Dataset[Tensor]):
    def __init__(self, paths: Sequence[Path], decode: DecodeAndResize) -> None:
        self.paths = paths
        self.decode = decode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> Tensor:
        path = self.paths[item]
        try:
            return self.decode({"bytes": None, "path": str(path)})
        except Exception as error:  # every codec has its own kinds
            raise ValueError(f"the image {path} does not decode: {error}; repair or remove it") from error


class UnlabelledFolder(L.LightningDataModule):
    """All images below a folder, for ``trainer.predict``: batches of uint8, shape ``(N, 3, image_size, image_size)``.

    Args:
        folder: Where the images are, in any depth; hidden files and files of other kinds are left out.
        class_names: K names of the classes that a model tells apart.
        image_size: Height and width of the images in pixels.
        interpolation: Filter for resizing.
        batch_size: Images a batch.
        num_workers: Processes that decode; 0 decodes in the main process.

    Attributes:
        files: The images relative to the folder, in the order of the batches.

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
    ) -> None:
        from torchvision.datasets.folder import IMG_EXTENSIONS

        super().__init__()
        if interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
        if min(image_size, batch_size) < 1:
            raise ValueError(f"image_size and batch_size must be at least 1, got {image_size} and {batch_size}")
        root = Path(folder)
        if not root.is_dir():
            raise NotADirectoryError(f"no folder of images at {root}")
        found = [file for file in visible_files(root) if file.suffix.lower() in IMG_EXTENSIONS]
        if not found:
            raise ValueError(f"{root} holds no images; expected {', '.join(IMG_EXTENSIONS)}")
        self.class_names = tuple(class_names)
        self.files = tuple(file.as_posix() for file in found)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._images = _Images([root / file for file in found], DecodeAndResize(image_size, interpolation))

    def predict_dataloader(self) -> DataLoader[Tensor]:
        """Return the images in the order of ``files``."""
        return DataLoader(self._images, batch_size=self.batch_size, num_workers=self.num_workers)
