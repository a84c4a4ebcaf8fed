"""What each option of a training step is worth: layout, precision, optimizer and compiler, each against the default.

    python -m benchmarks.performance.step_options tf_efficientnet_lite0 --key-layer blocks.4.2 --pixels 64
    python -m benchmarks.performance.step_options vit_base_patch32_224 --key-layer blocks.6 --batch 16 --repeats 5
    python -m benchmarks.performance.step_options resnet50 --key-layer layer3.0 --batch 256 --device cuda

Every option trains the same batch from the same weights, for full fine-tuning, SCL-FT, and SCL-FT from the cache. In
each repeat every one takes a step, one after the other; the gain is the median over the repeats of the default's time
to the option's of the same repeat. The difference is the largest relative one of the first losses, with a step of AdamW
between them. The first step of compiled blocks says what compiling costs. On a CPU the seconds are those of this
process, whoever else computes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.performance.finetune_step import Candidate, describe, seconds
from nc_finetune import ImageClassifier
from nc_finetune.callbacks import CompileBlocks
from nc_finetune.methods import FinetuningMethod, FullFinetuning, SkipConnectionFinetuning

DEFAULT = "default"
FIRST_LOSSES = 3


@dataclass(frozen=True)
class Option:
    """What is other than the default."""

    setting: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[ImageClassifier], Any] | None = None


def other_layout(model: ImageClassifier) -> None:
    model.backbone.set_channels_last(model.backbone.memory_format is not torch.channels_last)


def compile_blocks(model: ImageClassifier) -> CompileBlocks:
    callback = CompileBlocks()
    callback.on_fit_start(None, model)  # type: ignore[arg-type]
    return callback


OPTIONS = {
    DEFAULT: Option(),
    "the other layout (channels last, or not)": Option(prepare=other_layout),
    "bf16-mixed": Option({"precision": "bf16"}),
    "AdamW in one kernel (fused)": Option({"fused": True}),
    "compiled blocks": Option(prepare=compile_blocks),
}


def make_methods(layer: str) -> dict[str, tuple[Callable[[], FinetuningMethod], bool]]:
    def skip() -> FinetuningMethod:
        return SkipConnectionFinetuning(layer)

    return {"full FT": (FullFinetuning, False), "SCL-FT": (skip, False), "SCL-FT, cached": (skip, True)}


def measure(options: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    methods = make_methods(options.key_layer)
    return {name: _measure_method(options, *methods[name]) for name in options.methods or methods}


def _measure_method(
    options: argparse.Namespace, method: Callable[[], FinetuningMethod], cached: bool
) -> dict[str, dict[str, float]]:
    candidates: dict[str, Candidate] = {}
    losses: dict[str, list[float]] = {}
    rows: dict[str, dict[str, float]] = {}
    for name in [DEFAULT, *options.options]:
        changed = argparse.Namespace(**{**vars(options), **OPTIONS[name].setting})
        candidates[name] = Candidate(changed, method(), cached=cached, prepare=OPTIONS[name].prepare)
        start = time.perf_counter()
        losses[name] = [float(candidates[name].step())]
        rows[name] = {"first_seconds": time.perf_counter() - start}
        losses[name] += [float(candidates[name].step()) for _ in range(FIRST_LOSSES - 1)]
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(options.repeats):
        for name, candidate in candidates.items():
            times[name].append(seconds(candidate.step, options.device))
    for name, row in rows.items():
        row["seconds"] = statistics.median(times[name])
        row["gain"] = statistics.median(a / b for a, b in zip(times[DEFAULT], times[name], strict=True))
        row["difference"] = max(abs(a - b) / abs(b) for a, b in zip(losses[name], losses[DEFAULT], strict=True))
    return rows


def show(found: dict[str, dict[str, dict[str, float]]], title: str) -> None:
    table = Table("method", "option", "ms a step", "gain", "losses differ by", "first step, s", title=title)
    for method, rows in found.items():
        for name, row in rows.items():
            figures = f"{1e3 * row['seconds']:.1f}", f"{row['gain']:.2f}", f"{row['difference']:.1e}"
            table.add_row(method, name, *figures, f"{row['first_seconds']:.1f}")
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a network of timm")
    parser.add_argument("--key-layer", required=True)
    parser.add_argument("--methods", nargs="+", choices=list(make_methods("")), help="default: all")
    parser.add_argument("--options", nargs="+", choices=list(OPTIONS)[1:], default=list(OPTIONS)[1:])
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args(namespace=argparse.Namespace(precision="32", fused=False))
    warnings.filterwarnings("ignore", module="torch")
    found = measure(options)
    show(found, f"{options.network} {options.key_layer}, {options.pixels} px, batch {options.batch}, {options.device}")
    if options.out:
        options.out.write_text(json.dumps({"setting": describe(options), "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
