"""A name for data by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from torch import Tensor

from nc_finetune.cache.row_layout import raw_bytes


def hash_batches(batches: Iterable[tuple[Tensor, Tensor]]) -> str:
    """Hash images and labels as they come, after whatever was done to them.

    Args:
        batches: Of ``(images, labels)``; how they are cut does not count.

    Returns:
        BLAKE2b in hexadecimal.

    Example:
        >>> import torch
        >>> images, labels = torch.rand(4, 3, 2, 2), torch.arange(4)
        >>> whole, halves = [(images, labels)], zip(images.split(2), labels.split(2))
        >>> hash_batches(whole) == hash_batches(halves)
        True
    """
    pixels, classes = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    known = ""
    for images, labels in batches:
        if (kind := f"{images.dtype} {tuple(images.shape[1:])}") != known:
            pixels.update(kind.encode())
            known = kind
        pixels.update(raw_bytes(images))
        classes.update(raw_bytes(labels.long()))
    pixels.update(classes.digest())
    return pixels.hexdigest()
