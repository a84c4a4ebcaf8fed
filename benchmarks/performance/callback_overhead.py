"""What LayerwiseNC1 costs: time beside plain validation, its own pass beside a forward pass, memory of whole maps.

    python benchmarks/performance/callback_overhead.py validation resnet50 --pixels 224
    python benchmarks/performance/callback_overhead.py validation resnet50 --pixels 64 --batch 64
    python benchmarks/performance/callback_overhead.py validation vit_base_patch32_224 --pixels 224
    python benchmarks/performance/callback_overhead.py pass resnet50 --pixels 64 --batch 64
    python benchmarks/performance/callback_overhead.py memory
    python benchmarks/performance/callback_overhead.py validation resnet50 --pixels 224 --batch 256 \\
        --device cuda --precision bf16-mixed

Networks have random weights, images are noise. Runs with and without the callback are taken in turn, in one process;
the ratio is the median over pairs. CPU seconds of this process tell more than the clock where others compute, too; on
a GPU the clock counts.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import LayerwiseNC1

CLASSES = 10


class Classifier(L.LightningModule):
    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = timm.create_model(name, num_classes=CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


def make_loader(images: int, pixels: int, batch: int, device: str) -> DataLoader[Any]:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(images, 3, pixels, pixels), torch.arange(images) % CLASSES)
    return DataLoader(data, batch_size=batch, pin_memory=device == "cuda")


def make_trainer(options: argparse.Namespace, *callbacks: L.Callback) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    accelerator = "gpu" if options.device == "cuda" else "cpu"
    precision = options.precision
    return L.Trainer(accelerator=accelerator, devices=1, precision=precision, callbacks=list(callbacks), **quiet)


def seconds(call: Callable[[], object], device: str) -> tuple[float, float]:
    """Return seconds of the clock and of this process."""
    if device == "cuda":
        torch.cuda.synchronize()
    clock, own = time.perf_counter(), time.process_time()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - clock, time.process_time() - own


def compare(
    console: Console, title: str, with_it: Callable[[], Any], without: Callable[[], Any], options: Any
) -> tuple[float, float]:
    without()  # warm up
    with_it()
    pairs = []
    for repeat in range(options.repeats):  # the first of a pair may have it harder: take turns
        order = (without, with_it) if repeat % 2 else (with_it, without)
        timed = {call: seconds(call, options.device) for call in order}
        pairs.append((timed[without], timed[with_it]))
    table = Table("", "without s", "with s", "ratio", "lowest", "highest", title=title)
    for number, name in enumerate(("clock", "CPU")):
        plain, ours = ([pair[side][number] for pair in pairs] for side in (0, 1))
        ratios = [b / a for a, b in zip(plain, ours, strict=True)]
        figures = (
            statistics.median(plain),
            statistics.median(ours),
            statistics.median(ratios),
            min(ratios),
            max(ratios),
        )
        table.add_row(name, *(f"{figure:.3f}" for figure in figures))
    console.print(table)
    side = int(options.device == "cpu")
    return statistics.median(pair[0][side] for pair in pairs), statistics.median(pair[1][side] for pair in pairs)


def describe(options: argparse.Namespace) -> str:
    threads = f"{torch.get_num_threads()} threads" if options.device == "cpu" else torch.cuda.get_device_name()
    return (
        f"{options.network}, {options.pixels} px, batch {options.batch}, {options.images} images, {options.precision},"
        f" {threads}, {options.repeats} pairs"
    )


class Timed(LayerwiseNC1):
    """Times what is done once a validation, however many images there are."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        device = "cuda" if trainer.strategy.root_device.type == "cuda" else "cpu"
        self.once = seconds(lambda: super(Timed, self).on_validation_epoch_end(trainer, pl_module), device)


def validation(console: Console, options: argparse.Namespace) -> None:
    module = Classifier(options.network)
    loader = make_loader(options.images, options.pixels, options.batch, options.device)
    plain = make_trainer(options)
    callback = Timed(split="val", strict=True)
    ours = make_trainer(options, callback)
    plain_seconds, our_seconds = compare(
        console,
        f"validation with LayerwiseNC1(split='val'): {describe(options)}",
        lambda: ours.validate(module, loader, verbose=False),
        lambda: plain.validate(module, loader, verbose=False),
        options,
    )
    once = callback.once[options.device == "cpu"]
    share = (our_seconds - plain_seconds - once) / plain_seconds
    many = 50_000 * plain_seconds / options.images
    console.print(
        f"of which {once:.3f} s once a validation; beside that {100 * share:.1f} % of the time of an image,"
        f" so {100 * (share + once / many):.1f} % of a validation of 50,000"
    )


def own_pass(console: Console, options: argparse.Namespace) -> None:
    """Compare the pass over the training split with the same batches through the network alone."""
    module = Classifier(options.network)
    loader = make_loader(options.images, options.pixels, options.batch, options.device)
    callback = LayerwiseNC1(train_dataloader=loader, strict=True)
    trainer = make_trainer(options)
    trainer.validate(module, loader, verbose=False)  # attaches the module
    trainer.strategy.model_to_device()

    def forward() -> None:
        module.eval()
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            for batch in loader:
                module(trainer.strategy.batch_to_device(batch)[0])

    title = f"own pass against one forward pass: {describe(options)}"
    compare(console, title, lambda: callback.measure(trainer, module), forward, options)


def peak_memory() -> int:
    """Return the most bytes that this process ever held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def memory_of(options: argparse.Namespace) -> None:
    """Validate once, with or without the measurement of a whole map, and print the peak."""
    options.device, options.precision = "cpu", "32-true"
    loader = make_loader(options.images, 224, options.batch, "cpu")
    callback = LayerwiseNC1(["layer1.2"], split="val", pool="flatten", strict=True)
    trainer = make_trainer(options, *([callback] if options.what == "memory-with" else []))
    trainer.validate(Classifier("resnet50"), loader, verbose=False)
    print(peak_memory(), callback.values.get("layer1.2"))


def memory(console: Console, options: argparse.Namespace) -> None:
    """Measure ResNet50's layer1 without pooling, 802,816 columns, in a process of its own."""
    table = Table("", "peak MiB", "NC1", title=f"layer1.2 of ResNet50 unpooled, K = {CLASSES}, batch {options.batch}")
    peaks = []
    for what in ("memory-without", "memory-with"):
        command = [sys.executable, __file__, what, "--batch", str(options.batch), "--images", str(options.images)]
        output = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout  # noqa: S603
        peak, value = output.split()[-2:]
        peaks.append(int(peak))
        table.add_row(what.removeprefix("memory-"), f"{int(peak) / 2**20:.0f}", value)
    table.add_row("on top", f"{(peaks[1] - peaks[0]) / 2**20:.0f}", "")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["validation", "pass", "memory", "memory-with", "memory-without"])
    parser.add_argument("network", nargs="?", default="resnet50")
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", default="32-true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if options.what.startswith("memory-"):
        memory_of(options)
        return
    run = {"validation": validation, "pass": own_pass, "memory": memory}[options.what]
    run(Console(width=150), options)


if __name__ == "__main__":
    main()
