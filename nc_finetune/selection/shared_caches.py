"""What the runs of one process keep for each other: decoded images, and what frozen prefixes give."""

from __future__ import annotations

import contextlib
import shutil
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from nc_finetune.callbacks import PrefixCache
from nc_finetune.classifier import ImageClassifier

_SHARE_OF_DISK = 0.25

# Removed when the process ends.
_pixels = lru_cache(maxsize=1)(partial(TemporaryDirectory, prefix="nc-finetune-pixels-"))
_prefixes = lru_cache(maxsize=1)(partial(TemporaryDirectory, prefix="nc-finetune-grid-"))


def pixel_folder() -> str:
    """Return where decoded images are kept."""
    return _pixels().name


def prefix_caches(model: ImageClassifier) -> list[PrefixCache]:
    """Return the cache of a model whose method leaves a frozen prefix.

    Runs share it wherever prefix, images and cut are the same: methods, heads, losses and learning rates on one sample,
    and seeds where they do not draw another.
    """
    if not model.method.trains or model.method.first_tuned_layer(model.backbone) is None:
        return []
    folder = Path(_prefixes().name)
    make_room(folder, _SHARE_OF_DISK)
    return [PrefixCache(str(folder), splits=("train", "val", "test"))]


def forget_prefixes() -> None:
    """Remove what frozen prefixes gave to earlier runs of this process: the next one computes all of its own."""
    make_room(Path(_prefixes().name), 0.0)


def make_room(folder: Path, share: float) -> None:
    """Remove the stores in a folder that were written first until the rest takes at most a share of the room there is.

    Args:
        folder: Holds one folder for each store.
        share: Of what is free on the disk and what the stores take, in ``[0, 1]``.
    """
    sizes: dict[Path, int] = {}
    with contextlib.suppress(OSError):  # another process may remove one meanwhile
        for store in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime):
            sizes[store] = sum(file.stat().st_size for file in store.iterdir())
    allowed = share * (shutil.disk_usage(folder).free + sum(sizes.values()))
    for store in list(sizes):
        if sum(sizes.values()) <= allowed:
            return
        shutil.rmtree(store, ignore_errors=True)
        del sizes[store]
