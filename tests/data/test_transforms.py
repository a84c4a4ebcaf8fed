import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nc_finetune.data._pixels.transforms import DecodeAndResize


def decode(image: Image.Image, size: int = 4, file_format: str = "PNG", **options: Any) -> Tensor:
    """Save an image and decode what was saved."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return DecodeAndResize(size, "nearest")({"bytes": file.getvalue(), "path": None})


def flat(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, (4, 4), colour)


def palette(colour: tuple[int, int, int]) -> Image.Image:
    image = flat("P", 1)
    image.putpalette([0, 0, 0, *colour])
    return image


@pytest.mark.parametrize(
    ("image", "file_format", "colour"),
    [
        (flat("RGB", (10, 20, 30)), "PNG", [10, 20, 30]),
        (flat("L", 70), "PNG", [70, 70, 70]),
        (flat("1", 1), "PNG", [255, 255, 255]),
        (flat("LA", (70, 128)), "PNG", [70, 70, 70]),
        (flat("RGBA", (10, 20, 30, 128)), "PNG", [10, 20, 30]),
        (palette((10, 20, 30)), "PNG", [10, 20, 30]),
        (palette((10, 20, 30)), "GIF", [10, 20, 30]),
        (flat("CMYK", (0, 255, 255, 0)), "TIFF", [255, 0, 0]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_every_mode_becomes_rgb(image: Image.Image, file_format: str, colour: list[int]) -> None:
    expected = torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 4, 4)
    torch.testing.assert_close(decode(image, file_format=file_format), expected, rtol=0, atol=0)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_16_bits_become_8(file_format: str, value: int) -> None:
    # An 8-bit value times 257 is the same brightness in 16 bits.
    image = Image.fromarray(np.full((4, 4), value * 257, dtype=np.uint16))
    assert decode(image, file_format=file_format).unique().tolist() == [value]


def test_32_bit_integers_are_taken_for_16_bits() -> None:
    assert decode(flat("I", 128 * 257), file_format="TIFF").unique().tolist() == [128]


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bit_integers_out_of_range(value: int) -> None:
    with pytest.raises(ValueError, match=rf"pixels must lie in \[0, 65535\], they reach from {value} to {value}"):
        decode(flat("I", value), file_format="TIFF")


def test_floating_point_pixels() -> None:
    with pytest.raises(ValueError, match=r"floating-point pixels have no known range; save them with 8 or 16 bits"):
        decode(flat("F", 0.5), file_format="TIFF")


@pytest.mark.parametrize("transparency", [0, b"\x00\x80"])
def test_palette_with_transparency_does_not_warn(transparency: int | bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode(palette((10, 20, 30)), transparency=transparency)
    assert image[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (2, (0, -1)), (3, (-1, -1)), (4, (-1, 0)), (6, (0, -1)), (8, (-1, 0))]
)
def test_exif_orientation_is_applied(orientation: int, corner: tuple[int, int]) -> None:
    image = Image.new("L", (4, 4))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode(image, exif=exif)[0]
    assert upright[corner] == 255
    assert upright.count_nonzero() == 1


@pytest.mark.parametrize("transposed", [False, True])
def test_the_centre_of_the_longer_side_is_kept(transposed: bool) -> None:
    pixels = np.zeros((4, 12), dtype=np.uint8)
    pixels[:, 4:8] = 255
    image = decode(Image.fromarray(pixels.T if transposed else pixels))
    assert image.unique().tolist() == [255]


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (50, 3), (40, 40)])
def test_shape_and_dtype_do_not_depend_on_the_image(size: tuple[int, int]) -> None:
    image = decode(Image.new("RGB", size), size=7)
    assert image.shape == (3, 7, 7)
    assert image.dtype == torch.uint8


def test_interpolation_is_passed_on() -> None:
    file = io.BytesIO()
    Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (4, 2))).save(file, "PNG")
    found = {
        name: DecodeAndResize(8, name)({"bytes": file.getvalue(), "path": None}) for name in ("nearest", "bilinear")
    }
    assert found["nearest"].unique().tolist() == [0, 255]
    assert found["bilinear"].unique().numel() > 2


@pytest.mark.parametrize(
    ("encoded", "message"),
    [(b"no image at all", "the file is no image of a kind that Pillow knows"), (b"", "the file is empty")],
)
def test_what_is_no_image(encoded: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodeAndResize(4)({"bytes": encoded, "path": None})


def test_truncated_image() -> None:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    with pytest.raises(OSError, match="truncated"):
        DecodeAndResize(4)({"bytes": file.getvalue()[:1000], "path": None})
