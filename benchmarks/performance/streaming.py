"""What layer-wise NC1 of a stream of images costs, by their number and by processes, and what millions would take.

    python benchmarks/performance/streaming.py --images train.parquet --column img [--sizes 1000 2000] [--ranks 1 2]

Each size and number of processes is a run of its own by torchrun on this machine: parquet files are streamed, split
among the processes, decoded and resized to 64 pixels, and pass once through EfficientNet-Lite0 (package weights) while
LayerwiseNC1 measures the stem, 16 blocks and the penultimate feature. Told are images a second from the first batch to
the last, the most memory of a process, and NC1, which is to be the same however many processes there are. Seconds are
then a straight line of the number of images, and from it what a million and ImageNet's 14 millions would take.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from datasets import load_dataset
from datasets.distributed import split_dataset_by_node
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from nc_finetune import ImageClassifier, LayerwiseNC1

SIDE, BATCH = 64, 64


class Clock(L.Callback):
    """Time from the first batch to the end of the pass."""

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.start = getattr(self, "start", time.perf_counter())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = time.perf_counter() - self.start


def measure(images: str, column: str, classes: int, size: int, out: Path) -> None:
    """Run in a process of torchrun; the first one writes what came."""
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    stream = load_dataset("parquet", data_files=images, split="train", streaming=True).take(size)
    stream = split_dataset_by_node(stream, rank, ranks)
    resize = v2.Compose([v2.RGB(), v2.PILToTensor(), v2.Resize((SIDE, SIDE))])

    def collate(rows: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([resize(row[column]) for row in rows]), torch.tensor([row["label"] for row in rows])

    model = ImageClassifier("tf_efficientnet_lite0", classes, weights="package")
    nc1, clock = LayerwiseNC1(split="val"), Clock()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(strategy="ddp", accelerator="cpu", devices=ranks, callbacks=[clock, nc1], **quiet)
    trainer.validate(model, DataLoader(stream, BATCH, collate_fn=collate), verbose=False)
    if rank == 0:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found = {"seconds": clock.seconds, "peak": peak, "nc1": float(nc1.history[-1]["nc1/penultimate"])}
        out.write_text(json.dumps(found))


def run(options: argparse.Namespace, size: int, ranks: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        words = [__file__, "--images", options.images, "--column", options.column, "--classes", str(options.classes)]
        words += ["--measure", str(size), str(out)]
        subprocess.run([*launch, *words], check=True, capture_output=True)  # noqa: S603
        found: dict[str, float] = json.loads(out.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="a parquet file, or a pattern of several")
    parser.add_argument("--column", default="image", help="of the images; that of the labels is label")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 2000, 4000, 8000])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        size, out = options.measure
        measure(options.images, options.column, options.classes, int(size), Path(out))
        return
    table = Table("processes", "images", "seconds", "images a second", "memory of a process", "NC1, penultimate")
    lines = []
    for ranks in options.ranks:
        seconds = []
        for size in options.sizes:
            found = run(options, size, ranks)
            seconds.append(found["seconds"])
            speed = f"{size / found['seconds']:.0f}"
            memory = f"{found['peak'] / 2**20:.0f} MiB"
            table.add_row(str(ranks), f"{size:,}", f"{found['seconds']:.1f}", speed, memory, f"{found['nc1']:.12g}")
        slope, start = np.polyfit(options.sizes, seconds, 1)
        lines.append(
            f"{ranks} processes: {start:.1f} s and {1e3 * slope:.2f} ms an image; a million {1e6 * slope / 3600:.1f} h,"
            f" 14 millions {14e6 * slope / 3600:.0f} h, extrapolated"
        )
    console = Console(width=120)
    console.print(f"torch {torch.__version__}, one thread a process, {SIDE} pixels, batches of {BATCH}")
    console.print(table)
    for line in lines:
        console.print(line)


if __name__ == "__main__":
    main()
