"""What LayerwiseNC1 costs: time beside plain validation, its own pass beside a forward pass, memory of whole maps.

    python benchmarks/performance/callback_overhead.py --out benchmarks/results/performance/callback_overhead
    python benchmarks/performance/callback_overhead.py --only resnet50-224 --images 256 --batch 256 \\
        --device cuda --precision bf16-mixed

Networks have random weights, images are noise. Runs with and without the callback are taken in turn, in one process;
`ratio` is the median over pairs, `of minima` the ratio of the fastest runs. CPU seconds of this process tell more than
the clock where others compute, too; on a GPU the clock counts. `once` is what a validation costs however many images
it has; `per image` is the rest of the difference, as a share of the time of an image.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
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


@dataclass
class Case:
    """One row of the table: which network, on which images, and what it may cost."""

    kind: str
    network: str
    pixels: int
    batch: int
    images: int
    goal: str


CASES = {
    "resnet50-224": Case("validation", "resnet50", 224, 16, 48, "ratio <= 1.03"),
    "resnet50-64": Case("validation", "resnet50", 64, 64, 512, "ratio <= 1.06"),
    "vit-b-32-224": Case("validation", "vit_base_patch32_224", 224, 16, 64, "ratio <= 1.02"),
    "own-pass": Case("own pass", "resnet50", 64, 64, 256, "ratio about 1: one forward pass"),
    "memory": Case("memory", "resnet50", 224, 16, 32, "<= 1,024 MiB on top"),
}


def compare(with_it: Callable[[], Any], without: Callable[[], Any], options: Any) -> dict[str, float]:
    """Run both in turn and return what the table shows."""
    without()  # warm up
    with_it()
    side = int(options.device == "cpu")
    plain, ours = [], []
    for repeat in range(options.repeats):  # the first of a pair may have it harder: take turns
        order = (without, with_it) if repeat % 2 else (with_it, without)
        timed = {call: seconds(call, options.device)[side] for call in order}
        plain.append(timed[without])
        ours.append(timed[with_it])
    ratios = sorted(b / a for a, b in zip(plain, ours, strict=True))
    return {
        "without_s": min(plain),
        "with_s": min(ours),
        "ratio": statistics.median(ratios),
        "ratio_of_minima": min(ours) / min(plain),
        "lowest": ratios[0],
        "highest": ratios[-1],
    }


class Timed(LayerwiseNC1):
    """Times what is done once a validation, however many images there are."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        device = "cuda" if trainer.strategy.root_device.type == "cuda" else "cpu"
        self.once = seconds(lambda: super(Timed, self).on_validation_epoch_end(trainer, pl_module), device)


def validation(case: Case, options: argparse.Namespace) -> dict[str, float]:
    module = Classifier(case.network)
    loader = make_loader(case.images, case.pixels, case.batch, options.device)
    plain = make_trainer(options)
    callback = Timed(split="val", strict=True)
    ours = make_trainer(options, callback)
    measured = compare(
        lambda: ours.validate(module, loader, verbose=False),
        lambda: plain.validate(module, loader, verbose=False),
        options,
    )
    once = callback.once[options.device == "cpu"]
    difference = measured["with_s"] - measured["without_s"] - once
    return {**measured, "once_s": once, "per_image": difference / measured["without_s"]}


def own_pass(case: Case, options: argparse.Namespace) -> dict[str, float]:
    """Compare the pass over the training split with the same batches through the network alone."""
    module = Classifier(case.network)
    loader = make_loader(case.images, case.pixels, case.batch, options.device)
    callback = LayerwiseNC1(train_dataloader=loader, strict=True)
    trainer = make_trainer(options)
    trainer.validate(module, loader, verbose=False)  # attaches the module
    trainer.strategy.model_to_device()

    def forward() -> None:
        module.eval()
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            for batch in loader:
                module(trainer.strategy.batch_to_device(batch)[0])

    return compare(lambda: callback.measure(trainer, module), forward, options)


def peak_memory() -> int:
    """Return the most bytes that this process ever held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def validate_once(case: Case, options: argparse.Namespace, with_it: bool) -> None:
    """Validate once, with or without the measurement of a whole map, and print the peak."""
    loader = make_loader(case.images, case.pixels, case.batch, "cpu")
    callback = LayerwiseNC1(["layer1.2"], split="val", pool="flatten", strict=True)
    trainer = make_trainer(options, *([callback] if with_it else []))
    trainer.validate(Classifier(case.network), loader, verbose=False)
    print(peak_memory(), callback.values.get("layer1.2"))


def memory(case: Case, options: argparse.Namespace) -> dict[str, float]:
    """Measure ResNet50's layer1 without pooling, 802,816 columns, in a process of its own."""
    peaks = {}
    for which in ("without", "with"):
        command = [sys.executable, __file__, "--only", "memory", "--inner", which]
        output = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout  # noqa: S603
        peaks[which] = int(output.split()[-2]) / 2**20
    return {f"{which}_MiB": peak for which, peak in peaks.items()} | {"on_top_MiB": peaks["with"] - peaks["without"]}


RUNS = {"validation": validation, "own pass": own_pass, "memory": memory}
COLUMNS = {
    "without s": lambda row: _number(row, "without_s", ".2f"),
    "with s": lambda row: _number(row, "with_s", ".2f"),
    "ratio": lambda row: _number(row, "ratio", ".3f"),
    "of minima": lambda row: _number(row, "ratio_of_minima", ".3f"),
    "range": lambda row: f"{row['lowest']:.2f}-{row['highest']:.2f}" if "lowest" in row else "",
    "once s": lambda row: _number(row, "once_s", ".3f"),
    "per image": lambda row: _number(row, "per_image", ".1%"),
    "MiB on top": lambda row: _number(row, "on_top_MiB", ",.0f"),
    "goal": lambda row: row["goal"],
}


def _number(row: dict[str, Any], key: str, form: str) -> str:
    return format(row[key], form) if key in row else ""


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("what", *COLUMNS, title="LayerwiseNC1")
    for row in rows:
        table.add_row(_title(row), *(cell(row) for cell in COLUMNS.values()))
    Console(width=170).print(table)


def _title(row: dict[str, Any]) -> str:
    return f"{row['kind']}: {row['network']}, {row['pixels']} px, batch {row['batch']}, {row['images']} images"


def write(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write JSON with where it was measured, and the table as Markdown."""
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    where = {
        "device": device,
        "threads": options.threads,
        "precision": options.precision,
        "pairs": options.repeats,
        "seconds": "clock" if options.device == "cuda" else "CPU time of the process",
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("nc-finetune", "torch", "lightning", "timm")},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps({**where, "rows": rows}, indent=2) + "\n")
    lines = ["| what | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += ["| " + " | ".join([_title(row), *(cell(row) for cell in COLUMNS.values())]) + " |" for row in rows]
    told = f"{where['seconds']}, {options.threads} threads, {options.repeats} pairs, {options.precision}, {device}"
    options.out.with_suffix(".md").write_text(f"# What LayerwiseNC1 costs\n\n{told}.\n\n" + "\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=CASES, nargs="*", default=list(CASES))
    parser.add_argument("--batch", type=int, help="instead of each case's own")
    parser.add_argument("--images", type=int, help="instead of each case's own")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--out", type=Path, help="where JSON and Markdown go, without suffix")
    parser.add_argument("--inner", choices=["with", "without"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if options.inner:
        validate_once(CASES["memory"], options, options.inner == "with")
        return
    rows: list[dict[str, Any]] = []
    for name in options.only:
        case = replace(CASES[name], **{k: v for k in ("batch", "images") if (v := getattr(options, k)) is not None})
        rows.append({**asdict(case), **RUNS[case.kind](case, options)})
        print(json.dumps(rows[-1]), flush=True)
    show(rows)
    if options.out:
        write(rows, options)


if __name__ == "__main__":
    main()
