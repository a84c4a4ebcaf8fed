"""Which files are images that can be read, and how one is opened."""

from __future__ import annotations

import importlib
import importlib.util
import io
import mimetypes
import warnings
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from nc_finetune.errors import DataWarning

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SIDE = 16_384
# Packages that teach Pillow further kinds, and what in them does so where importing them is not enough.
_PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_avif": None, "pillow_jxl": None}
# Pages to be drawn and films: Pillow knows them by their first bytes, but decodes no pixels by itself.
_NOT_DECODED = ("EPS", "MPEG")
# Images by their ending that neither Pillow nor the system's list of media types knows.
_OTHER_ENDINGS = (
    ".arw",
    ".cr2",
    ".cr3",
    ".dcm",
    ".dng",
    ".exr",
    ".hdr",
    ".heic",
    ".heif",
    ".hif",
    ".jxl",
    ".nef",
    ".svg",
)


@cache
def image_endings() -> frozenset[str]:
    """Return the endings of files that are read as images: all that Pillow decodes, with its plug-ins.

    Plug-ins are ``pillow-heif``, ``pillow-avif-plugin`` and ``pillow-jxl-plugin``, where they are installed, and
    whatever else has been registered with Pillow.

    Returns:
        Lower-case endings with their dot.

    Example:
        >>> {".png", ".gif", ".jfif", ".jp2"} <= image_endings(), ".pdf" in image_endings()
        (True, False)
    """
    from PIL import Image, ImageFile

    _prepare_pillow()
    endings = Image.registered_extensions()
    opening = {kind: opener for kind, (opener, _) in Image.OPEN.items() if kind not in _NOT_DECODED}
    stubs = {
        kind
        for kind, opener in opening.items()
        if isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)
    }
    return frozenset(ending for ending, kind in endings.items() if kind in opening.keys() - stubs) | {".mpo"}


@cache
def _prepare_pillow() -> None:
    """Register plug-ins; and let Pillow be silent on damaged EXIF, of which the orientation alone is looked at."""
    warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
    for package, function in _PLUGINS.items():
        if importlib.util.find_spec(package) is None:
            continue
        try:
            module = importlib.import_module(package)
            if function is not None:
                getattr(module, function)()
        except Exception as error:  # of a library that it was built for
            said = f"the plug-in {package} of Pillow is installed and fails: {error}"
            warnings.warn(said, DataWarning, stacklevel=2)


def is_image_file(file: PurePath) -> bool:
    """Tell by its ending whether a file is read as an image; upper and lower case are the same."""
    return file.suffix.lower() in image_endings()


def looks_like_an_image(file: PurePath) -> bool:
    """Tell by its ending whether a file is an image, of a kind that is read or not.

    Example:
        >>> looks_like_an_image(PurePath("scan.dcm")), looks_like_an_image(PurePath("labels.csv"))
        (True, False)
    """
    kind = mimetypes.guess_type(file.name)[0] or ""
    return is_image_file(file) or file.suffix.lower() in _OTHER_ENDINGS or kind.startswith("image/")


def open_image(encoded: dict[str, Any]) -> Image:
    """Open an image without decoding its pixels.

    Args:
        encoded: ``{"bytes": ..., "path": ...}``; bytes come first.

    Returns:
        Pillow's image; of an animation the first frame.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If there is none, it is empty or no image, or it is too large to be decoded.
    """
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    _prepare_pillow()
    content, path = encoded["bytes"], encoded["path"]
    if content is None and path is None:
        raise ValueError("there is no image")
    if content is None and Path(path).is_dir():
        raise ValueError("it is a folder")
    if not (Path(path).stat().st_size if content is None else content):
        raise ValueError("the file is empty")
    try:
        image = Pillow.open(path if content is None else io.BytesIO(content))
    except UnidentifiedImageError as error:
        raise ValueError("the file is no image of a kind that Pillow knows") from error
    except Pillow.DecompressionBombError as error:
        raise ValueError(f"it is too large to be decoded ({error}); make it smaller") from error
    limit = Pillow.MAX_IMAGE_PIXELS
    if max(image.size) > MAX_SIDE or (limit and image.width * image.height > limit):
        raise ValueError(
            f"{image.width:,} x {image.height:,} pixels are too many: sides up to {MAX_SIDE:,} and"
            f" {(limit or 0) / 1e6:.0f} million pixels are decoded; make it smaller"
        )
    return image


def decoder_versions() -> str:
    """Name the libraries that turn files into pixels, with their versions: another one may give other pixels."""
    import PIL
    import torchvision
    from PIL import features

    _prepare_pillow()
    codecs = ("libjpeg_turbo", "jpg", "jpg_2000", "libtiff", "webp", "avif", "zlib")
    parts = {name: features.version(name) for name in codecs}
    parts |= {name: importlib.import_module(name).__version__ for name in _PLUGINS if importlib.util.find_spec(name)}
    return f"Pillow {PIL.__version__} torchvision {torchvision.__version__} {parts}"
