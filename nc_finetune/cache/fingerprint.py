"""Whether data are the same again."""

from __future__ import annotations

import hashlib
import pickle
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def hash_batches(batches: Iterable[tuple[Tensor, Tensor]]) -> str:
    """Hash images and labels as they come, after whatever was done to them.

    Args:
        batches: Of ``(images, labels)``; how they are cut does not count.

    Returns:
        BLAKE2b in hexadecimal.

    Example:
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
        pixels.update(_bytes(images))
        classes.update(_bytes(labels.long()))
    pixels.update(classes.digest())
    return pixels.hexdigest()


def _bytes(values: Tensor) -> memoryview:
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def is_random(dataset: Any, rows: Sequence[int]) -> bool:
    """Tell whether a dataset gives another sample each time that it is asked.

    It does if samples differ when they are read again, or if reading draws random numbers: a flip that did not happen
    this time has drawn one, too.

    Args:
        dataset: With ``dataset[row]`` giving a tensor, or a sequence that begins with one.
        rows: Which samples to read.

    Example:
        >>> is_random(list(torch.rand(3, 2)), [0, 2])
        False
    """
    before = _random_states()
    first = _images(dataset, rows)
    drawn = _random_states() != before
    again = _images(dataset, rows)
    return drawn or len(first) != len(again) or not all(map(torch.equal, first, again))


def _images(dataset: Any, rows: Sequence[int]) -> list[Tensor]:
    """Read samples as a loader does; a dataset may leave some out."""
    by_batch = hasattr(dataset, "__getitems__")
    samples = dataset.__getitems__(list(rows)) if by_batch else [dataset[row] for row in rows]
    return [torch.as_tensor(sample if isinstance(sample, Tensor) else sample[0]) for sample in samples]


def _random_states() -> tuple[bytes, bytes, object]:
    return torch.get_rng_state().numpy().tobytes(), pickle.dumps(np.random.get_state()), random.getstate()
