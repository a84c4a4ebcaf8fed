"""What caches are worth over a whole run: cost over the number of images, a probe's path, and the time of imports.

    python benchmarks/performance/finetune_scaling.py curve --images 1000 5000 20000 50000 [--source FOLDER]
    python benchmarks/performance/finetune_scaling.py probe
    python benchmarks/performance/finetune_scaling.py imports

curve: seconds of this process to fill the cache in a folder, and of one epoch of SCL-FT from it, by number of images;
memory is what this process holds for itself alone, files that are mapped not counted, beside that before the fit.
The images are noise, or the first ones of the training split of a source such as CIFAR-10.
probe: a linear probe by L-BFGS along a path of penalties, against one forward pass over the same images.
imports: processes that import lightning, this package, and that show the command line's help, in turn.
Networks have random weights; the images of probe are noise.
"""

from __future__ import annotations

import argparse
import logging
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nc_finetune import ImageClassifier, TimmBackbone
from nc_finetune.callbacks import PrefixCache
from nc_finetune.callbacks.probe_path import DEFAULT_PENALTIES
from nc_finetune.data import DecodeAndResize, LabelledImages, load_source
from nc_finetune.functional.logistic_regression import logistic_path
from nc_finetune.methods import LinearProbe, SkipConnectionFinetuning

CLASSES = 10
COMMANDS = {
    "lightning": "import lightning",
    "nc_finetune": "import nc_finetune",
    "its model and data": "from nc_finetune import ImageClassifier, ImageData",
    "nc-finetune --help": "from nc_finetune.cli import main; main(['--help'])",
}


class Noise(Dataset[tuple[Tensor, int]]):
    """Images that are drawn when they are read, the same each time."""

    def __init__(self, images: int, pixels: int) -> None:
        self.images = images
        self.pixels = pixels
        self.drawn = torch.randint(256, (3, pixels, pixels), dtype=torch.uint8)

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.drawn.roll(row, 2).add(row % 251), row % CLASSES


class EpochTimer(L.Callback):
    """Seconds of this process for each epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = time.process_time()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds.append(time.process_time() - self.start)


def own_memory() -> float:
    """Bytes that this process holds for itself, on Linux."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else float("nan")


def _images(options: argparse.Namespace, number: int) -> Dataset[Any]:
    if options.source is None:
        return Noise(number, options.pixels)
    table = load_source(options.source).splits["train"]
    if number > len(table.labels):
        raise SystemExit(f"{options.source} has {len(table.labels)} training images, not {number}")
    return LabelledImages(table, torch.arange(number), DecodeAndResize(options.pixels))


def curve(options: argparse.Namespace) -> None:
    columns = ("images", "fill s", "epoch s", "ms an image", "kept MB", "own memory MB")
    table = Table(*columns, title=f"{options.network} {options.key_layer}, {options.pixels} px, SCL-FT, cached")
    for images in options.images:
        model = ImageClassifier(
            TimmBackbone(options.network, None), CLASSES, method=SkipConnectionFinetuning(options.key_layer)
        )
        loader = DataLoader(_images(options, images), batch_size=options.batch, shuffle=True)
        before = own_memory()
        with tempfile.TemporaryDirectory() as folder:
            cache, timer = PrefixCache(folder), EpochTimer()
            start = time.process_time()
            quiet = dict.fromkeys(
                ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
            )
            L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[cache, timer], **quiet).fit(model, loader)
            whole, epoch = time.process_time() - start, timer.seconds[0]
            held = own_memory() - before
        figures = (whole - epoch, epoch, 1e3 * whole / images, cache.stored_bytes["train"] / 1e6, held / 1e6)
        table.add_row(str(images), *(f"{figure:.2f}" for figure in figures))
    Console().print(table)


def probe(options: argparse.Namespace) -> None:
    model = ImageClassifier(TimmBackbone(options.network, None), CLASSES, method=LinearProbe()).eval()
    loader = DataLoader(Noise(options.images[0], options.pixels), batch_size=options.batch)
    start = time.process_time()
    with torch.no_grad():
        taken = [(model.features(images), labels) for images, labels in loader]
    features, labels = (torch.cat(parts) for parts in zip(*taken, strict=True))
    forward = time.process_time() - start
    table = Table("", "s", "of the pass", title=f"{options.network}, {options.pixels} px, {len(labels)} images")
    table.add_row("forward pass", f"{forward:.2f}", "1.00")
    fifty = [10 ** (-6 + 8 * place / 50) for place in range(50)]
    one, own, more = (_path_seconds(features, labels, path) for path in ([1e-2], DEFAULT_PENALTIES, fifty))
    table.add_row("pass and one fit by L-BFGS, penalty 0.01", *_beside(forward + one, forward))
    table.add_row("pass and L-BFGS along ProbePath's own 15 penalties", *_beside(forward + own, forward))
    table.add_row("L-BFGS along 50 penalties from there", *_beside(more, forward))
    Console().print(table)


def _path_seconds(features: Tensor, labels: Tensor, penalties: Sequence[float]) -> float:
    start = time.process_time()
    logistic_path(features, labels, CLASSES, penalties)
    return time.process_time() - start


def _beside(seconds: float, forward: float) -> tuple[str, str]:
    return f"{seconds:.2f}", f"{seconds / forward:.2f}"


def imports(options: argparse.Namespace) -> None:
    """User and system seconds of child processes, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.repeats):
        for name, command in COMMANDS.items():
            seconds[name].append(_child_seconds([sys.executable, "-c", command]))
    table = Table("", "CPU s", "of lightning's")
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, seconds["lightning"], strict=True))
        table.add_row(name, f"{statistics.median(own):.2f}", f"{ratio:.2f}")
    Console().print(table)


def _child_seconds(command: list[str]) -> float:
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)  # noqa: S603
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["curve", "probe", "imports"])
    parser.add_argument("--network", default="tf_efficientnet_lite0")
    parser.add_argument("--key-layer", default="blocks.4.2")
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--images", type=int, nargs="+", default=[2000])
    parser.add_argument("--source", help="of ImageData, for curve; left out, noise")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    what: dict[str, Any] = {"curve": curve, "probe": probe, "imports": imports}
    what[options.what](options)


if __name__ == "__main__":
    main()
