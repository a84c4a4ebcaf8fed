"""From an encoded image to a tensor of the working size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")


def _to_rgb(image: Image) -> Image:
    """Convert to RGB; transparency is dropped, 16 bits a channel become 8."""
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
        import datasets
        from torchvision.transforms import v2

        self._feature = datasets.Image()
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
            ValueError: If there is none, or its pixels have no known range.
        """
        result: Tensor = self._resize(_to_rgb(self._feature.decode_example(encoded)))
        return result
