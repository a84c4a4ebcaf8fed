"""How many processes read images."""

from __future__ import annotations

import os
import statistics
import time

from nc_finetune.data.labelled_images import Drawn, LabelledImages
from nc_finetune.data.unlabelled_folder import UnlabelledImages

# More seldom help, and each holds a copy of what the process has.
MOST_WORKERS = 8
# Starting processes takes about as long as this.
WORTHWHILE_SECONDS = 1.0
_TRIED = 4


def usable_cores() -> int:
    """Return the cores that this process may run on, which in a container are fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def choose_workers(images: LabelledImages | UnlabelledImages, processes: int = 1) -> int:
    """Choose how many processes read a split.

    None where reading all of it takes less than a second, as of small images or those that a pixel cache holds, and
    where no core is to spare; otherwise one for each core that is left beside the training processes, at most 8. What
    is read, and in which order, does not depend on it.

    Args:
        images: The split; a few images from all over it are read.
        processes: Training processes on this machine.

    Example:
        >>> from nc_finetune.data import ImageData
        >>> choose_workers(ImageData("sklearn:digits", image_size=16).test_set, processes=10_000)
        0
    """
    spare = min(usable_cores() // processes - 1, MOST_WORKERS)
    if spare < 1 or _seconds_to_read(images) < WORTHWHILE_SECONDS:
        return 0
    return spare


def _seconds_to_read(images: LabelledImages | UnlabelledImages) -> float:
    step = max(len(images) // _TRIED, 1)
    seconds: list[float] = []
    for item in range(0, len(images), step)[:_TRIED]:
        start = time.perf_counter()
        try:
            # With a seed, it leaves the random numbers alone.
            images[Drawn(item, seed=0)] if isinstance(images, LabelledImages) else images[item]
        except ValueError:  # it does not decode, and is told of when its turn comes; the others say how long it takes
            continue
        seconds.append(time.perf_counter() - start)
    # The middle one: the first may load a library, and on a busy machine any may have to wait.
    return statistics.median(seconds or [0.0]) * len(images)
