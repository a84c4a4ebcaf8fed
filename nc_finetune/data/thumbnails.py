"""Small pictures of images, for pages."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image


def thumbnail_of(encoded: Mapping[str, Any], pixels: int = 160) -> bytes:
    """Return a PNG or JPEG file of an image, so many pixels wide or high at the most; empty if it does not decode.

    Args:
        encoded: ``{"bytes": ..., "path": ...}``, one of them not empty.
        pixels: The most.

    Example:
        >>> thumbnail_of({"bytes": b"no image", "path": None})
        b''
    """
    try:
        with Image.open(io.BytesIO(encoded["bytes"]) if encoded["bytes"] else encoded["path"]) as image:
            small = image.convert("RGB")
            small.thumbnail((pixels, pixels))
    except (OSError, ValueError, TypeError):
        return b""
    packed = io.BytesIO()
    small.save(packed, "PNG" if max(small.size) < pixels // 2 else "JPEG")
    return packed.getvalue()
