"""Speed of the loader beside that of its decoding alone, for photos of 500 pixels.

    PYTHONPATH=. python benchmarks/performance/data_loading.py [--images 600] [--workers 2] [--rounds 5]

Alone: as many processes as there are workers decode and resize their share of the files and throw the pixels away. The
loader decodes, resizes, stacks and hands batches over. Both are timed in turn; the figure is the
median of the ratios of neighbours, since the machine's speed drifts. The cost of reading rows from the table is apart.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nc_finetune import ImageData
from nc_finetune.data import LabelledImages


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


def through_the_loader(data: ImageData) -> Callable[[], float]:
    """Return what times a pass; the workers are there already, as from the second epoch on."""
    loader = data.eval_dataloader("train")
    for _ in loader:
        pass

    def timed() -> float:
        start = time.perf_counter()
        for _ in loader:
            pass
        return time.perf_counter() - start

    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    known = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        write_photos(Path(name), known.images)
        data = ImageData(name, image_size=224, num_workers=known.workers, test_size=4, val_size=4)
        images = data.train_set
        timed = through_the_loader(data)
        pairs = [(decode_alone(images, known.workers), timed()) for _ in range(known.rounds)]
        start = time.perf_counter()
        for row in images.indices:
            images.table.encoded(row)
        reading = time.perf_counter() - start
    number = len(images)
    alone, loader = (statistics.median(number / pair[side] for pair in pairs) for side in (0, 1))
    share = statistics.median(alone_s / loader_s for alone_s, loader_s in pairs)
    print(f"{number} photos of 500 x 375 pixels to 224, {known.workers} processes, {known.rounds} rounds")
    print(f"decode alone: {alone:.0f} images/s; loader: {loader:.0f} images/s; {100 * share:.0f} % of it")
    print(f"rows of the table, without decoding: {1e6 * reading / number:.0f} microseconds an image")


if __name__ == "__main__":
    main()
