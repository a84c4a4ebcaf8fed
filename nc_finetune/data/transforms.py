"""From an encoded image to a tensor of the working size."""

from __future__ import annotations

from typing import Any

from torch import Tensor

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")


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
        """
        image = self._feature.decode_example(encoded).convert("RGB")
        result: Tensor = self._resize(image)
        return result
