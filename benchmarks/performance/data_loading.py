"""Speed of the loader beside that of its decoding alone, for photos of 500 pixels.

    PYTHONPATH=. python benchmarks/performance/data_loading.py [--images 600] [--workers 2] [--rounds 5]

Alone: as many processes as there are workers decode and resize their share of the files and throw the pixels away. The
loader decodes, resizes, stacks and hands batches over. Both are timed in turn; the figure is the
median of the ratios of neighbours, since the machine's speed drifts. The cost of reading rows from the table is apart.

With `pixel_cache` the first epoch also writes what it decodes, and the second reads it; each round begins with an empty
folder. Workers are there before the clock starts, as they are from the second epoch on.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nc_finetune import ImageData
from nc_finetune.data import LabelledImages

SIZE = 224


def write_photos(folder: Path, number: int) -> None:
    """Write JPEG files that compress about like photos: smooth shapes with some noise, 500 x 375 pixels."""
    generator = np.random.default_rng(0)
    for item in range(number):
        shapes = Image.fromarray(generator.integers(256, size=(9, 12, 3), dtype=np.uint8)).resize((500, 375))
        noisy = np.asarray(shapes).astype(np.int16) + generator.integers(-12, 13, size=(375, 500, 3))
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        path = folder / f"class{item % 4}" / f"{item}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())


def decode_share(images: LabelledImages, start: int, step: int, ready: Any, go: Any) -> None:
    torch.set_num_threads(1)
    rows = [images.table.encoded(images.indices[item]) for item in range(start, len(images), step)]
    ready.release()
    go.wait()
    for encoded in rows:
        images.decode(encoded)


def decode_alone(images: LabelledImages, workers: int) -> float:
    """Return the seconds that processes need that do nothing else."""
    context = multiprocessing.get_context("fork")
    ready, go = context.Semaphore(0), context.Event()
    processes = [
        context.Process(target=decode_share, args=(images, start, workers, ready, go)) for start in range(workers)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    start = time.perf_counter()
    go.set()
    for process in processes:
        process.join()
    return time.perf_counter() - start


def seconds_of_a_pass(loader: Any) -> float:
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def through_the_loader(data: ImageData) -> Callable[[], float]:
    """Return what times a pass; the workers are there already, as from the second epoch on."""
    loader = data.eval_dataloader("train")
    seconds_of_a_pass(loader)
    return partial(seconds_of_a_pass, loader)


def with_pixel_cache(source: str, cache: Path, workers: int) -> tuple[float, float]:
    """Return the seconds of the first epoch, which fills the cache, and of the second, which reads it."""
    data = photos(source, workers, pixel_cache=str(cache))
    loader = data.eval_dataloader("train")
    seconds_of_a_pass(loader)  # starts the workers; what it has kept is thrown away
    for file in cache.iterdir():
        with file.open("r+b") as marks:
            marks.write(bytes(len(data.data.splits["train"].labels)))
    return seconds_of_a_pass(loader), seconds_of_a_pass(loader)


def photos(source: str, workers: int, **options: Any) -> ImageData:
    return ImageData(source, image_size=SIZE, num_workers=workers, test_size=4, val_size=4, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    known = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        write_photos(Path(name), known.images)
        data = photos(name, known.workers)
        images = data.train_set
        timed = through_the_loader(data)
        pairs = [(decode_alone(images, known.workers), timed()) for _ in range(known.rounds)]
        del timed  # and its workers
        epochs = []
        for _ in range(known.rounds):
            with tempfile.TemporaryDirectory(prefix="pixels-") as cache:
                epochs.append(with_pixel_cache(name, Path(cache), known.workers))
        start = time.perf_counter()
        for row in images.indices:
            images.table.encoded(row)
        reading = time.perf_counter() - start
    number = len(images)
    alone, loader = (statistics.median(number / pair[side] for pair in pairs) for side in (0, 1))
    first, second = (statistics.median(number / epoch[side] for epoch in epochs) for side in (0, 1))
    share = statistics.median(alone_s / loader_s for alone_s, loader_s in pairs)
    faster = statistics.median(first_s / second_s for first_s, second_s in epochs)
    print(f"{number} photos of 500 x 375 pixels to {SIZE}, {known.workers} workers, median of {known.rounds} rounds\n")
    print("| what | images/s | beside |")
    print("| --- | ---: | --- |")
    print(f"| decode and resize alone | {alone:.0f} | |")
    print(f"| loader | {loader:.0f} | {100 * share:.0f} % of decode alone |")
    print(f"| loader, first epoch with `pixel_cache` | {first:.0f} | {100 * first / loader:.0f} % of the loader |")
    print(f"| loader, second epoch with `pixel_cache` | {second:.0f} | {faster:.1f} times the first |")
    print(f"\nRows of the table, without decoding: {1e6 * reading / number:.0f} microseconds an image.")


if __name__ == "__main__":
    main()
