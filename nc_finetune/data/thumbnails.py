"""Small pictures of images, for pages."""

from __future__ import annotations

import io
from typing import Any

from nc_finetune.data._pixels.pixel_values import read_rgb


def thumbnail_of(encoded: dict[str, Any], pixels: int = 160) -> bytes:
    """Return a PNG or JPEG file of an image, so many pixels wide or high at the most; empty if it does not decode.

    It is decoded as for a network: upright, of wide numbers the 8 bits that a network sees, transparency dropped. All
    of it is shown, of which a network sees the square in the middle.

    Args:
        encoded: ``{"bytes": ..., "path": ...}``; bytes come first.
        pixels: The most.

    Example:
        >>> thumbnail_of({"bytes": b"no image", "path": None})
        b''
    """
    try:
        small = read_rgb(encoded)
        small.thumbnail((pixels, pixels))
    except Exception:  # every codec has its own kinds
        return b""
    packed = io.BytesIO()
    small.save(packed, "PNG" if max(small.size) < pixels // 2 else "JPEG")
    return packed.getvalue()
