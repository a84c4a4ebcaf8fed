"""What becomes of pixels of other kinds than RGB of 8 bits, and of EXIF that is damaged."""

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nc_finetune.data._pixels.pixel_values import read_rgb

RAMP = np.arange(1024, dtype=np.uint16).reshape(32, 32)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)


def read(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(read_rgb({"bytes": content, "path": None}))


def saved(values: NDArray[Any], file_format: str = "TIFF", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, file_format, **options)
    return file.getvalue()


def tiff(data: bytes, bits: int, kind: int = 1, channels: int = 1, order: str = "<", **tags: int) -> bytes:
    """Write a TIFF of 32 x 32 pixels by hand, for what Pillow reads and does not write."""
    known = {256: 32, 257: 32, 259: 1, 262: tags.get("white", 1 if channels == 1 else 2), 277: channels, 278: 32}
    known |= {279: len(data)} | ({281: tags["largest"]} if "largest" in tags else {})
    start = 8 + 2 + 12 * (len(known) + 3) + 4
    arrays, entries = b"", []
    for tag, number in ((258, bits), (339, kind)):
        packed = struct.pack(f"{order}{channels}H", *[number] * channels)
        place = packed.ljust(4, b"\0") if channels < 3 else struct.pack(f"{order}I", start + len(arrays))
        arrays += packed if channels > 2 else b""
        entries.append(struct.pack(f"{order}HHI", tag, 3, channels) + place)
    entries += [struct.pack(f"{order}HHII", tag, 4, 1, number) for tag, number in known.items()]
    entries.append(struct.pack(f"{order}HHII", 273, 4, 1, start + len(arrays)))
    entries.sort(key=lambda entry: struct.unpack(f"{order}H", entry[:2]))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    return head + b"".join(entries) + bytes(4) + arrays + data


def png_of_16_bits(values: NDArray[Any], colour_type: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = values.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def packed_12_bits(values: NDArray[Any]) -> bytes:
    first, second = values.ravel()[0::2].astype(int), values.ravel()[1::2].astype(int)
    three = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1)
    return three.astype(np.uint8).tobytes()


OPAQUE = np.full_like(RAMP, 0xFFFF)[..., None]
# The whole range of what each says or holds: from black to white in 256 steps.
WHOLE = {
    "10 bits, TIFF": saved(RAMP),
    "10 bits, PNG": saved(RAMP, "PNG"),
    "10 bits, compressed": saved(RAMP, compression="tiff_lzw"),
    "10 bits, big-endian": tiff(RAMP.astype(">u2").tobytes(), 16, order=">"),
    "10 bits, signed": tiff(RAMP.astype("<i2").tobytes(), 16, kind=2),
    "10 bits, int32": saved(RAMP.astype(np.int32)),
    "12 bits, TIFF": saved(RAMP * np.uint16(4)),
    "12 bits, packed": tiff(packed_12_bits(RAMP * 4), 12),
    "14 bits, PNG": saved(RAMP * np.uint16(16), "PNG"),
    "16 bits, TIFF": saved(RAMP * np.uint16(64)),
    "8 bits, int32": saved((RAMP // 4).astype(np.int32)),
    "8 bits, uint16": saved(RAMP // np.uint16(4)),
    "10 bits, RGB": tiff(COLOURS.astype("<u2").tobytes(), 16, channels=3),
    "10 bits, RGB, big-endian": tiff(COLOURS.astype(">u2").tobytes(), 16, channels=3, order=">"),
    "12 bits, RGB": tiff((COLOURS * np.uint16(4)).astype("<u2").tobytes(), 16, channels=3),
    "16 bits, RGB": tiff((COLOURS * np.uint16(64)).astype("<u2").tobytes(), 16, channels=3),
    "10 bits, RGB PNG": png_of_16_bits(COLOURS, 2),
    "10 bits, RGBA PNG": png_of_16_bits(np.concatenate([COLOURS, OPAQUE], axis=-1), 6),
    "PGM of 10 bits": b"P5 32 32 1023\n" + RAMP.astype(">u2").tobytes(),
    "JPEG 2000 of 16 bits": saved(RAMP * np.uint16(64), "JPEG2000"),
    "floats of a range": saved((RAMP / 4).astype(np.float32), tiffinfo={340: 0.0, 341: 255.75}),
    "floats below 0": saved((RAMP - 512.0).astype(np.float32), tiffinfo={340: -512.0, 341: 511.0}),
}


@pytest.mark.filterwarnings("ignore:images of 16 or 32 bits")
@pytest.mark.parametrize("kind", WHOLE)
def test_wide_pixels_fill_8_bits(kind: str) -> None:
    found, expected = read(WHOLE[kind]), RAMP // 4
    assert np.abs(found[..., 0].astype(int) - expected).max() <= 1
    assert len(np.unique(found)) == 256


@pytest.mark.parametrize(
    ("content", "largest"),
    [
        (saved(RAMP // np.uint16(4), tiffinfo={281: 1023}), 63),
        (saved(RAMP // np.uint16(4), tiffinfo={281: 4095}), 15),
        (tiff(packed_12_bits(RAMP), 12), 63),
        (tiff((COLOURS // np.uint16(4)).astype("<u2").tobytes(), 16, channels=3, largest=1023), 63),
        (saved(np.full((4, 4), 257 * 3, np.uint16)), 3),
        (saved(np.zeros((4, 4), np.int32)), 0),
        (b"P5 32 32 4095\n" + RAMP.astype(">u2").tobytes(), 63),
    ],
    ids=["10 bits", "12 bits", "12 bits, packed", "RGB of 10 bits", "8 bits over 16", "black", "PGM of 12 bits"],
)
def test_a_dark_image_stays_dark_where_the_file_says_its_range(content: bytes, largest: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(content).max() == largest


@pytest.mark.parametrize("kind", ["10 bits, TIFF", "8 bits, int32", "10 bits, RGB PNG"])
def test_a_range_that_no_file_says_is_told(kind: str) -> None:
    with pytest.warns(UserWarning, match=r"no value is above (1023|255)\) and do not say how many"):
        read(WHOLE[kind])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved(RAMP.astype(np.int32) - 5), r"pixels must lie in \[0, 65535\], they reach from -5 to 1018"),
        (saved(RAMP.astype(np.int32) * 100), r"pixels must lie in \[0, 65535\]"),
        (saved(RAMP.astype(np.float32)), r"no known range; save them with 8 or 16 bits"),
        (saved(RAMP.astype(np.float32), tiffinfo={340: 0.0, 341: 1.0}), r"pixels lie in \[0, 1\], they reach from 0"),
        (saved((RAMP * np.nan).astype(np.float32), tiffinfo={340: 0.0, 341: 1.0}), r"they reach from nan"),
    ],
    ids=["negative", "too large", "floats", "floats out of range", "nan"],
)
def test_pixels_without_a_known_range_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(content)


def test_white_is_where_the_file_says() -> None:
    found = read(tiff((RAMP * np.uint16(64)).astype("<u2").tobytes(), 16, white=0))
    assert (found[0, 0, 0], found[-1, -1, 0]) == (255, 0)


def _of_mode(mode: str) -> bytes | None:
    file = io.BytesIO()
    for file_format in ("PNG", "TIFF"):
        try:
            Image.new("L", (8, 8), 200).convert("RGB").convert(mode).save(file, file_format)
        except (OSError, ValueError, KeyError):
            continue
        return file.getvalue()
    return None


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LA", "RGBX"])
def test_modes_of_8_bits_keep_their_grey(mode: str) -> None:
    content = _of_mode(mode)
    assert content is not None
    assert np.abs(read(content).mean() - 200) < 20


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
@pytest.mark.parametrize("transparency", [0, 200, b"\x00\x80"])
def test_transparency_is_dropped(mode: str, transparency: Any) -> None:
    if mode != "P":
        transparency = 200 if mode == "L" else (200, 200, 200)
    image, file = Image.new("RGB", (4, 4), (200, 200, 200)).convert(mode), io.BytesIO()
    image.save(file, "PNG", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(read(file.getvalue()).astype(int) - 200).max() <= 6


# EXIF

PHOTO = np.arange(30 * 40 * 3, dtype=np.uint32).reshape(30, 40, 3).astype(np.uint8)


def exif(turn: int = 6) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = turn
    tags[0x010F] = "a maker"
    tags[0x011A] = (72, 1)
    tags[0x8769] = {0x9000: b"0230", 0x829A: (1, 50)}
    return tags.tobytes()


def _flipped(seed: int) -> bytes:
    content, generator = bytearray(exif()), np.random.default_rng(seed)
    for place in generator.integers(6, len(content), size=3):
        content[place] = generator.integers(256)
    return bytes(content)


DAMAGES = {f"cut at {length}": exif()[:length] for length in (0, 6, 8, 12, 14, 20, 40, 60)}
DAMAGES |= {f"bytes flipped, {seed}": _flipped(seed) for seed in range(20)}
DAMAGES |= {"no TIFF inside": b"Exif\0\0garbage", "offset to nowhere": b"Exif\0\0MM\0*\xff\xff\xff\xff"}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_pixels_behind_damaged_exif_are_read(file_format: str, damage: str) -> None:
    assert sorted(read(saved(PHOTO, file_format, exif=DAMAGES[damage])).shape) == [3, 30, 40]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(10))
def test_every_orientation_stands_upright_as_pillow_says(file_format: str, turn: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = turn
    content = saved(PHOTO, file_format, exif=tags)
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(read(content), expected)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
def test_the_orientation_counts_where_the_rest_is_damaged() -> None:
    """Pillow can read these numbers, and raises an error where it writes them again (its issue 5528)."""
    content = next(damaged for seed in range(400) if _cannot_be_written(damaged := _flipped(seed)))
    assert read(saved(PHOTO, "JPEG", exif=content)).shape == (40, 30, 3)


def _cannot_be_written(content: bytes) -> bool:
    tags = Image.Exif()
    try:
        tags.load(content)
        if tags.get(0x0112) != 6:
            return False
        del tags[0x0112]
    except (SyntaxError, struct.error):
        return False
    try:
        tags.tobytes()
    except Exception:
        return True
    return False
