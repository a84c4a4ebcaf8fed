"""From whatever kinds of pixels Pillow reads to RGB of 8 bits, upright."""

from __future__ import annotations

import contextlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from nc_finetune.data._pixels.image_files import open_image
from nc_finetune.errors import DataWarning

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

_EXIF_ORIENTATION = 0x0112
# Tags of TIFF: what the numbers of a file mean.
_WHITE_IS_ZERO, _BITS, _MIN, _MAX, _MIN_OF_KIND, _MAX_OF_KIND = 262, 258, 280, 281, 340, 341
# Those that cameras and scanners have; a file of 16 or 32 bits a pixel may hold any of them.
DEPTHS = (8, 10, 12, 14, 16)
# What Pillow brings to the full range of 16 bits itself, by what the file says.
_FULL_RANGE = ("PPM", "JPEG2000")
# The other order of the two bytes: it gives the lower byte of each, where Pillow keeps the higher one.
_SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def read_rgb(encoded: dict[str, Any]) -> Image:
    """Decode an image, turn it upright and convert it to RGB of 8 bits a channel.

    Of an animation or of several pages it is the first. Transparency is dropped: colours are what stands below it.
    1 bit, grey, palette, CMYK, YCbCr, LAB and HSV are converted as Pillow does. Wider numbers become 8 bits by what
    the file says of them:

    - Whatever a TIFF says to lie between ``SMinSampleValue`` and ``SMaxSampleValue`` lies there; floats without both
      are refused.
    - Integers have as many bits as the file says (TIFF by ``BitsPerSample`` below 16, or by ``MaxSampleValue``; JPEG
      2000 and PGM), or else the fewest of 8, 10, 12, 14 and 16 that hold the largest value of the image, with a warning
      where these are fewer than 16: a file of 16 or 32 bits often holds fewer. Multiples of 257 alone are 8 bits spread
      over 16. The highest 8 bits are kept.
    - Where a TIFF says that white is 0, it is.

    EXIF counts for the orientation alone; where it is damaged, the image is taken as it lies.

    Args:
        encoded: ``{"bytes": ..., "path": ...}``; bytes come first.

    Returns:
        Pillow's image, of mode ``"RGB"``.

    Raises:
        OSError: If the image cannot be decoded.
        ValueError: If there is none, it is too large, or its values have no known range.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.fromarray(np.array([[0, 512, 1023]], dtype=np.uint16)).save(file, "TIFF", tiffinfo={281: 1023})
        >>> np.asarray(read_rgb({"bytes": file.getvalue(), "path": None}))[0, :, 0].tolist()
        [0, 128, 255]
    """
    with open_image(encoded) as image:
        raw = _raw_mode(image)
        turn = _load(image)
        if raw.startswith(("RGB", "CMYK")) and ";16" in raw and _may_be_shallow(image):
            return _turned(_of_16_bits(image, encoded, raw), turn)
        return _turned(_to_rgb(image), turn)


def _load(image: Image) -> Any:
    """Decode the pixels; return how they are turned upright."""
    from PIL import TiffImagePlugin

    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        image.load()  # first: some kinds have their EXIF behind the pixels
        return _turn(image)
    turn = _turn(image)
    with contextlib.suppress(Exception):  # as there
        image.getexif().clear()  # Pillow would turn it while it is decoded, with all of its EXIF
    image.load()
    return turn


def _turn(image: Image) -> Any:
    """Return how Pillow turns an image upright; ``None`` where it stands, or nobody knows."""
    from PIL.Image import Transpose

    by_orientation = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        return by_orientation.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # every kind of damage has its own error, and none is one of the pixels
        return None


def _turned(image: Image, turn: Any) -> Image:
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image) -> Image:
    from PIL import Image as Pillow

    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        grey = _floats_to_8_bits(image, values) if image.mode == "F" else _to_8_bits(image, values)
        return Pillow.fromarray(~grey if _tag(image, _WHITE_IS_ZERO) == 0 else grey).convert("RGB")
    image.info.pop("transparency", None)  # palettes with it warn, and colours are the same without
    if image.mode in ("La", "RGBa"):  # colours that were multiplied with their opacity
        image = image.convert(f"{image.mode[:-1]}A")
    return image.convert("RGB")


def _to_8_bits(image: Image, values: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = int(values.min()), int(values.max())
    if (stated := _stated_range(image)) is not None:
        return _by_range(values, *stated)
    if low < 0 or high > 0xFFFF:
        raise ValueError(f"pixels must lie in [0, 65535], they reach from {low} to {high}")
    return (values >> (_depth(image, values) - 8)).astype(np.uint8)


def _depth(image: Image, values: NDArray[Any]) -> int:
    """Return how many bits a value has: what the file says, or else the fewest that hold the largest value."""
    if image.format in _FULL_RANGE:
        return 16
    largest, bits = int(values.max()), _tag(image, _BITS) or 16
    stated = _tag(image, _MAX) or (2**bits - 1 if bits < 16 else None)
    if stated is not None and largest <= stated <= 0xFFFF:
        return _fewest(stated)
    depth = _fewest(largest)
    if depth == 16 or not (values % 257).any():  # 8 bits that were spread over 16
        return 16
    warnings.warn(
        f"images of 16 or 32 bits a pixel hold fewer (here no value is above {2**depth - 1}) and do not say how many:"
        " each is taken as one of 8, 10, 12, 14 or 16 bits, by its largest value; save them with 8 bits, or as TIFF"
        " with MaxSampleValue, to be sure",
        DataWarning,
        stacklevel=2,
    )
    return depth


def _fewest(largest: int) -> int:
    return next(depth for depth in DEPTHS if largest < 2**depth)


def _floats_to_8_bits(image: Image, values: NDArray[Any]) -> NDArray[np.uint8]:
    if (stated := _stated_range(image)) is None:
        raise ValueError(
            "floating-point pixels have no known range; save them with 8 or 16 bits, or as TIFF with SMinSampleValue"
            " and SMaxSampleValue"
        )
    return _by_range(values, *stated)


def _stated_range(image: Image) -> tuple[float, float] | None:
    low, high = _tag(image, _MIN_OF_KIND), _tag(image, _MAX_OF_KIND)
    return None if low is None or high is None else (float(low), float(high))


def _by_range(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    found = float(values.min()), float(values.max())
    if not (low < high and low <= found[0] <= found[1] <= high):  # nan is not, either
        raise ValueError(
            f"the file says that its pixels lie in [{low:g}, {high:g}], they reach from {found[0]:g} to {found[1]:g};"
            " mend SMinSampleValue and SMaxSampleValue"
        )
    return np.rint((values.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


def _tag(image: Image, number: int) -> Any:
    """Return a number that a TIFF says of its pixels; of several channels the largest."""
    value = getattr(image, "tag_v2", {}).get(number)
    return max(value) if isinstance(value, tuple) and value else value or (0 if value == 0 else None)


def _raw_mode(image: Image) -> str:
    """Return how the pixels lie in the file, e.g. ``"RGB;16L"``, before it is decoded; ``""`` if that is not known."""
    for _, _, _, options in getattr(image, "tile", []):
        first = options[0] if isinstance(options, tuple) and options else options
        if isinstance(first, str):
            return first
    return ""


def _may_be_shallow(image: Image) -> bool:
    """Tell whether all colours, of which Pillow has kept the higher of two bytes, have fewer than 15 bits."""
    return int(_colours(image).max()) < 2**6


def _colours(image: Image) -> NDArray[np.uint8]:
    values = np.asarray(image)
    return values if image.mode == "CMYK" else values[..., :3]


def _of_16_bits(image: Image, encoded: dict[str, Any], raw: str) -> Image:
    """Read the lower bytes, too, and keep the highest 8 bits that there are."""
    from PIL import Image as Pillow

    with open_image(encoded) as again:
        again.tile = [tile._replace(args=_swapped(tile.args, raw)) for tile in again.tile]
        _load(again)
        values = _colours(image).astype(np.uint16) << 8 | _colours(again)
        eight = (values >> (_depth(again, values) - 8)).astype(np.uint8)
    return Pillow.fromarray(eight, "CMYK" if image.mode == "CMYK" else "RGB").convert("RGB")


def _swapped(options: Any, raw: str) -> Any:
    other = raw[:-1] + _SWAPPED[raw[-1]]
    return (other, *options[1:]) if isinstance(options, tuple) else other
