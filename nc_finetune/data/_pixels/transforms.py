"""From an encoded image to a tensor of the working size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from nc_finetune.data._pixels.image_files import decoder_versions
from nc_finetune.data._pixels.pixel_values import read_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
# Beyond this ratio of the sides only a window around the centre is resized: the rest would be cropped off again.
_LONG = 4
# Raised with every change of what a file is decoded to: kept images of another number are decoded again.
_RULES = 2


def _window(image: Image) -> Image:
    """Cut the ends off a very long image: resized as a whole, a line of 16,384 x 1 pixels would fill the memory."""
    short, long = sorted(image.size)
    if long <= _LONG * short:
        return image
    keep = min(long, 2 * short + 16)
    start = (long - keep) // 2
    box = (start, 0, start + keep, short) if image.width == long else (0, start, short, start + keep)
    return image.crop(box)


class DecodeAndResize:
    """Decode an image, turn it upright, convert it to RGB, resize its shorter side and crop the centre.

    What becomes of which kind of pixels, :func:`~nc_finetune.data._pixels.pixel_values.read_rgb` says.

    Args:
        image_size: Height and width of the result in pixels.
        interpolation: ``"bicubic"``, ``"bilinear"`` or ``"nearest"``; antialiased.

    Attributes:
        image_size: As above.
        identity: A text that is the same for the same arguments, rules and versions of the libraries that decode.

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

        self.image_size = image_size
        self.identity = f"{image_size} {interpolation}, rules {_RULES}, {decoder_versions()}"
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
        result: Tensor = self._resize(_window(read_rgb(encoded)))
        return result
