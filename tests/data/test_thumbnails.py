"""Small pictures of pages: what they show, and what has none."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nc_finetune.data._pixels.pixel_values import read_rgb
from nc_finetune.data.thumbnails import thumbnail_of

GREY = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
PHOTO = np.random.default_rng(0).integers(0, 256, (12, 20, 4), dtype=np.uint8)


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def shown(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(thumbnail_of({"bytes": content, "path": None}))))


@pytest.mark.parametrize(
    "content",
    [
        saved(Image.fromarray(GREY), "PNG"),
        saved(Image.fromarray((GREY // 64).astype(np.uint16)), "TIFF", tiffinfo={281: 1023}),
        saved(Image.fromarray(GREY.astype(np.int32)), "TIFF", tiffinfo={340: 0, 341: 65535}),
        saved(Image.fromarray(PHOTO[..., :3]), "PNG", exif=turned(6)),
        saved(Image.fromarray(PHOTO[..., :3]), "TIFF", exif=turned(3)),
        saved(Image.fromarray(PHOTO), "PNG"),
        saved(Image.fromarray(PHOTO, "CMYK"), "TIFF"),
    ],
    ids=["16 bits", "10 bits", "32 bits", "lying", "upside down", "transparent", "cmyk"],
)
def test_a_small_image_is_shown_as_a_network_sees_it(content: bytes) -> None:
    assert np.array_equal(shown(content), np.asarray(read_rgb({"bytes": content, "path": None})))


def test_a_large_photo_stands_upright_and_is_small(tmp_path: Path) -> None:
    Image.fromarray(PHOTO[..., :3]).resize((800, 400)).save(tmp_path / "it.jpg", exif=turned(6))
    with Image.open(io.BytesIO(thumbnail_of({"bytes": None, "path": str(tmp_path / "it.jpg")}))) as small:
        assert (small.size, small.format) == ((80, 160), "JPEG")


@pytest.mark.parametrize("content", [b"", b"no image", saved(Image.fromarray(PHOTO), "PNG")[:60], None])
def test_what_does_not_decode_has_none(content: bytes | None) -> None:
    assert thumbnail_of({"bytes": content, "path": None}) == b""
