"""Augmentation of whole batches, on whatever device they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nc_finetune.data.labelled_images import Transform

# As torchvision's RandomResizedCrop: boxes that do not fit are drawn again so often.
_ATTEMPTS = 10


@contextmanager
def numbers_drawn_from(seed: int, device: torch.device) -> Iterator[None]:
    """Draw random numbers from a seed inside the ``with`` block, and leave those outside as they are.

    Args:
        seed: Non-negative, below 2^63.
        device: Whose generator, beside that of the CPU.
    """
    if device.type == "cpu":
        forked = torch.random.fork_rng(devices=[])
    else:
        forked = torch.random.fork_rng(devices=[device], device_type=device.type)
    with forked:
        torch.manual_seed(seed)
        yield


_AS_THEY_COME = ContextVar("numbers_as_they_come", default=False)


@contextmanager
def numbers_as_they_come() -> Iterator[None]:
    """Let :class:`~nc_finetune.ImageData` augment batches by the generators as they are inside the ``with`` block.

    In a loop it draws by seed, epoch and number of the batch, which mean nothing to somebody who has no loop.
    """
    token = _AS_THEY_COME.set(True)
    try:
        yield
    finally:
        _AS_THEY_COME.reset(token)


def augmented(images: Tensor, transform: Transform, seed: int) -> Tensor:
    """Return a batch as a transform makes it, by a seed of its own, or inside :func:`numbers_as_they_come` by none."""
    with nullcontext() if _AS_THEY_COME.get() else numbers_drawn_from(seed, images.device):
        found: Tensor = transform(images)
    return found


class PerImage:
    """Apply a transform to each image of a batch on its own.

    A transform of torchvision draws one set of numbers a call, so that it would turn a whole batch the same way. This
    costs a call an image: on a GPU prefer transforms that draw for each image themselves, as :class:`RandomCropFlip`
    and those of kornia do.

    Args:
        transform: Takes and returns an image, ``(3, H, W)``.

    Example:
        >>> from torchvision.transforms import v2
        >>> batch = torch.arange(2).expand(64, 3, 1, 2)
        >>> len(PerImage(v2.RandomHorizontalFlip())(batch).unique(dim=0))
        2
    """

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images, each transformed."""
        return torch.stack([self.transform(image) for image in images])


class RandomCropFlip:
    """Crop a random part of each image, resize it to the image's size, and flip every other one.

    What torchvision's RandomResizedCrop and RandomHorizontalFlip do to one image, for a batch in one kernel: boxes lie
    between pixels, and the filter is bilinear. Each image has its own box.

    Args:
        scale: Least and largest share of the area that is kept, in ``(0, 1]``.
        ratio: Least and largest ratio of width to height of the box.
        flip: Share of the images that are flipped, in ``[0, 1]``.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Szegedy et al. 2015, Going deeper with convolutions, arXiv:1409.4842.

    Example:
        >>> images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
        >>> cropped = RandomCropFlip()(images)
        >>> cropped.shape, cropped.dtype
        (torch.Size([8, 3, 32, 32]), torch.uint8)
    """

    def __init__(
        self, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3), flip: float = 0.5
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be two shares in (0, 1], the smaller first, got {scale}")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio must be two numbers above 0, the smaller first, got {ratio}")
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must be a share in [0, 1], got {flip}")
        self.scale = scale
        self.ratio = ratio
        self.flip = flip

    def __call__(self, images: Tensor) -> Tensor:
        """Return images of the same shape and dtype, uint8 in 0...255 or floating point."""
        moves = self._draw(len(images), images.shape[-1] / images.shape[-2]).to(images.device)
        grid = F.affine_grid(moves, list(images.shape), align_corners=False)
        floats = images if images.is_floating_point() else images.float()
        found = F.grid_sample(floats, grid.to(floats.dtype), padding_mode="border", align_corners=False)
        return found if images.is_floating_point() else found.round_().to(images.dtype)

    def _draw(self, number: int, aspect: float) -> Tensor:
        """Return where each corner of the results lies in the images: shape ``(N, 2, 3)``, in units of half a side."""
        sizes = self._sizes(number, aspect)
        centres = (1 - sizes) * (2 * torch.rand(number, 2) - 1)
        mirrored = torch.where(torch.rand(number) < self.flip, -1.0, 1.0)
        moves = torch.zeros(number, 2, 3)
        moves[:, 0, 0] = sizes[:, 0] * mirrored
        moves[:, 1, 1] = sizes[:, 1]
        moves[:, :, 2] = centres
        return moves

    def _sizes(self, number: int, aspect: float) -> Tensor:
        """Draw widths and heights of boxes, shape ``(N, 2)``, as shares of the image's."""
        areas = torch.empty(_ATTEMPTS, number).uniform_(*self.scale)
        ratios = torch.empty(_ATTEMPTS, number).uniform_(*map(math.log, self.ratio)).exp_() / aspect
        tried = torch.stack([(areas * ratios).sqrt(), (areas / ratios).sqrt()], dim=-1)
        fits = (tried <= 1).all(-1)
        chosen = tried[fits.int().argmax(0), torch.arange(number)]
        # What never fits is the largest box of a ratio that is allowed, as torchvision has it.
        squeezed = min(max(aspect, self.ratio[0]), self.ratio[1]) / aspect
        fallback = torch.tensor([min(squeezed, 1.0), min(1 / squeezed, 1.0)])
        return torch.where(fits.any(0)[:, None], chosen, fallback)
