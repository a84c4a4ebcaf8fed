"""From an encoded image to a tensor of the working size."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
MAX_SIDE = 16_384
# Beyond this ratio of the sides only a window around the centre is resized: the rest would be cropped off again.
_LONG = 4
_EXIF_ORIENTATION = 0x0112


def open_image(encoded: dict[str, Any]) -> Image:
    """Open an image without decoding its pixels.

    Args:
        encoded: ``{"bytes": ..., "path": ...}``; bytes come first.

    Returns:
        Pillow's image; of an animation the first frame.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If there is none, it is empty or no image, or it is too large to be decoded.
    """
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    content, path = encoded["bytes"], encoded["path"]
    if content is None and path is None:
        raise ValueError("there is no image")
    if not (Path(path).stat().st_size if content is None else content):
        raise ValueError("the file is empty")
    try:
        image = Pillow.open(path if content is None else io.BytesIO(content))
    except UnidentifiedImageError as error:
        raise ValueError("the file is no image of a kind that Pillow knows") from error
    except Pillow.DecompressionBombError as error:
        raise ValueError(f"it is too large to be decoded ({error}); make it smaller") from error
    limit = Pillow.MAX_IMAGE_PIXELS
    if max(image.size) > MAX_SIDE or (limit and image.width * image.height > limit):
        raise ValueError(
            f"{image.width:,} x {image.height:,} pixels are too many: sides up to {MAX_SIDE:,} and"
            f" {(limit or 0) / 1e6:.0f} million pixels are decoded; make it smaller"
        )
    return image


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image) if image.getexif().get(_EXIF_ORIENTATION, 1) != 1 else image


def _window(image: Image) -> Image:
    """Cut the ends off a very long image: resized as a whole, a line of 16,384 x 1 pixels would fill the memory."""
    short, long = sorted(image.size)
    if long <= _LONG * short:
        return image
    keep = min(long, 2 * short + 16)
    start = (long - keep) // 2
    box = (start, 0, start + keep, short) if image.width == long else (0, start, short, start + keep)
    return image.crop(box)


def to_rgb(image: Image) -> Image:
    """Convert to RGB; transparency is dropped, 16 bits a channel become 8.

    Raises:
        ValueError: If the values of the pixels have no known range.
    """
    from PIL import Image as Pillow

    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save them with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow clips these at 255, so that nearly everything would be white
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"pixels must lie in [0, 65535], they reach from {values.min()} to {values.max()}")
        image = Pillow.fromarray((values >> 8).astype(np.uint8))
    if "transparency" in image.info:  # palettes with it warn unless they are expanded first
        image = image.convert("RGBA")
    return image.convert("RGB")


class DecodeAndResize:
    """Decode an image, turn it upright, convert it to RGB, resize its shorter side and crop the centre.

    Args:
        image_size: Height and width of the result in pixels.
        interpolation: ``"bicubic"``, ``"bilinear"`` or ``"nearest"``; antialiased.

    Attributes:
        identity: A text that is the same for the same arguments.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("L", (40, 20), 255).save(file, "PNG")
        >>> image = DecodeAndResize(16)({"bytes": file.getvalue(), "path": None})
        >>> image.shape, image.dtype
        (torch.Size([3, 16, 16]), torch.uint8)
    """

    def __init__(self, image_size: int, interpolation: str = "bicubic") -> None:
        from torchvision.transforms import v2

        self.identity = f"{image_size} {interpolation}"
        self._resize = v2.Compose(
            [
                v2.Resize(image_size, interpolation=v2.InterpolationMode(interpolation), antialias=True),
                v2.CenterCrop(image_size),
                v2.PILToTensor(),
            ]
        )

    def __call__(self, encoded: dict[str, Any]) -> Tensor:
        """Return a uint8 tensor of shape ``(3, image_size, image_size)``.

        Raises:
            OSError: If the image cannot be decoded.
            ValueError: If there is none, it is too large, or its pixels have no known range.
        """
        with open_image(encoded) as image:
            image.load()
            result: Tensor = self._resize(to_rgb(_window(_upright(image))))
        return result
