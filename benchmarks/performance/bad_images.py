"""A folder of 20,000 images of which 1 % are broken: what `skip` finds, and what looking for it costs.

    python benchmarks/performance/bad_images.py [--images 20000] [--share 0.01] [--workers 0]

Small images (96 pixels), beside which the cost is large. Cost: passes over a folder without broken images, with
`on_bad_image` "raise" and "skip" in turn; the median of the ratios of neighbours, since the speed drifts. Then
a linear probe is fitted with `skip` on the messy folder.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import lightning as L
import numpy as np
from PIL import Image

from nc_finetune import ImageClassifier, ImageData

SIDE = 96


def jpeg(seed: int) -> bytes:
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(256, size=(12, 12, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def make_folder(folder: Path, number: int, share: float) -> set[str]:
    """Write images of ten classes, some cut off, empty or of text; return the broken ones."""
    contents = [jpeg(seed) for seed in range(200)]
    chosen = set(np.random.default_rng(0).choice(number, round(share * number), replace=False).tolist())
    broken = set()
    for item in range(number):
        path = folder / f"class{item % 10}" / f"{item:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = contents[item % len(contents)]
        if item in chosen:
            content = (content[: len(content) // 2], b"", b"<html>not found</html>")[item % 3]
            broken.add(str(path))
        path.write_bytes(content)
    return broken


def load(folder: Path, way: str, workers: int) -> ImageData:
    data = ImageData(str(folder), image_size=64, on_bad_image=way, num_workers=workers, batch_size=64)  # type: ignore[arg-type]
    _ = data.train_set
    return data


def seconds(data: ImageData) -> float:
    """Return the processor time of a pass: other programs do not count."""
    start = time.process_time()
    for _ in data.eval_dataloader("train"):
        pass
    return time.process_time() - start


def overhead(folder: Path, passes: int) -> float:
    """Return the median cost of skipping over raising in per cent."""
    raising, skipping = load(folder, "raise", 0), load(folder, "skip", 0)
    seconds(raising)
    pairs = [(seconds(raising), seconds(skipping)) for _ in range(passes)]
    return 100 * (statistics.median(skip / plain for plain, skip in pairs) - 1)


def fit(folder: Path, workers: int) -> ImageData:
    data = load(folder, "skip", workers)
    model = ImageClassifier("test_resnet", data.num_classes, weights=None)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, datamodule=data)
        trainer.test(model, datamodule=data, verbose=False)
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--passes", type=int, default=9)
    known = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        clean, messy = Path(name, "clean"), Path(name, "messy")
        make_folder(clean, min(known.images, 1000), 0)
        print(f"cost of skip over raise: {overhead(clean, known.passes):+.2f} % of the processor time", flush=True)
        broken = make_folder(messy, known.images, known.share)
        start = time.perf_counter()
        found = {str(bad.path) for bad in fit(messy, known.workers).bad_images()}
        print(
            f"{known.images:,} images, {len(broken)} broken: trained and tested in {time.perf_counter() - start:.0f} s;"
        )
        print(f"reported {len(found)}, of them wrong {len(found - broken)}, missed {len(broken - found)}")


if __name__ == "__main__":
    main()
