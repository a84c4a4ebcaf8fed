"""A corpus of images that are odd or broken, made as needed."""

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def photo(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """Return a smooth image in colours."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(256, size=(4, 5, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, file_format: str = "JPEG", **options: Any) -> bytes:
    """Return an image as the content of a file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def _giant_png(width: int, height: int) -> bytes:
    """Return a small file that says to hold many pixels."""
    content = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


def _frames() -> list[Image.Image]:
    return [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photo(), exif=exif)


# Each is decoded, as the value of its centre says.
ODD: dict[str, tuple[Callable[[], bytes], str]] = {
    "cmyk": (lambda: encoded(photo().convert("CMYK"), "JPEG", quality=95), "jpg"),
    "16 bits": (lambda: encoded(Image.fromarray(np.full((9, 9), 0x8000, dtype=np.uint16)), "PNG"), "png"),
    "palette": (lambda: encoded(photo().convert("P"), "PNG"), "png"),
    "palette with transparency": (lambda: encoded(photo().convert("P"), "PNG", transparency=0), "png"),
    "alpha": (lambda: encoded(photo().convert("RGBA"), "PNG"), "png"),
    "grey with alpha": (lambda: encoded(photo().convert("LA"), "PNG"), "png"),
    "one bit": (lambda: encoded(photo().convert("1"), "PNG"), "png"),
    "animated GIF": (lambda: encoded(_frames()[0], "GIF", save_all=True, append_images=_frames()[1:]), "gif"),
    "animated PNG": (lambda: encoded(_frames()[0], "PNG", save_all=True, append_images=_frames()[1:]), "png"),
    "animated WebP": (
        lambda: encoded(_frames()[0], "WEBP", save_all=True, append_images=_frames()[1:], lossless=True),
        "webp",
    ),
    "turned by EXIF": (_rotated, "jpg"),
    "damaged EXIF": (lambda: encoded(photo(), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"), "jpg"),
    "1 x 1": (lambda: encoded(Image.new("RGB", (1, 1), "red"), "PNG"), "png"),
    "a line": (lambda: encoded(Image.new("L", (16_000, 1), 77), "PNG"), "png"),
    "PNG called .jpg": (lambda: encoded(photo(), "PNG"), "jpg"),
    "bytes after the end": (lambda: encoded(photo()) + b"more", "jpg"),
}

# Each is refused with the message that stands beside it.
BROKEN: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "truncated JPEG": (lambda: encoded(photo(400, 300))[:-2000], "jpg", r"truncated"),
    "truncated PNG": (lambda: encoded(photo(400, 300), "PNG")[:-2000], "png", r"truncated|broken"),
    "header alone": (lambda: encoded(photo(400, 300))[:300], "jpg", r"[Tt]runcated|no image|broken"),
    "no image": (lambda: b"<html>404 not found</html>", "jpg", r"the file is no image of a kind that Pillow knows"),
    "zero bytes": (lambda: b"", "jpg", r"the file is empty"),
    "zeros": (lambda: bytes(10_000), "jpg", r"the file is no image of a kind that Pillow knows"),
    "20,000 px wide": (lambda: _giant_png(20_000, 10), "png", r"20,000 x 10 pixels are too many: sides up to 16,384"),
    "100 million pixels": (
        lambda: _giant_png(10_000, 10_000),
        "png",
        r"10,000 x 10,000 pixels are too many: .*89 mill",
    ),
    "decompression bomb": (lambda: _giant_png(16_000, 16_000), "png", r"too large to be decoded .*; make it smaller"),
    "floating point": (
        lambda: encoded(Image.new("F", (9, 9), 0.5), "TIFF"),
        "tif",
        r"floating-point pixels have no known range; save them with 8 or 16 bits",
    ),
    "damaged pixels": (lambda: _damaged_png(), "png", r"broken|unrecognized data stream"),
}


def _damaged_png() -> bytes:
    content = bytearray(encoded(photo(200, 200), "PNG"))
    content[200:260] = bytes(60)
    return bytes(content)


def write_broken_folder(
    folder: Path, good: int, classes: tuple[str, ...] = ("cat", "dog"), size: int = 32
) -> list[Path]:
    """Write good images and one broken image of each kind, in turn into each class; return the broken ones."""
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(good):
        content = encoded(photo(size, size, number), quality=90)
        (folder / classes[number % len(classes)] / f"good{number:05}.jpg").write_bytes(content)
    broken = []
    for number, (make, ending, _) in enumerate(BROKEN.values()):
        broken.append(folder / classes[number % len(classes)] / f"bad{number:05}.{ending}")
        broken[-1].write_bytes(make())
    return broken
