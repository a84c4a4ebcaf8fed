"""What a training step costs: time against full fine-tuning and against counted arithmetic, and peak memory.

    python benchmarks/performance/finetune_step.py resnet50 --key-layer layer3.0 --pixels 96
    python benchmarks/performance/finetune_step.py vit_base_patch32_224 --key-layer blocks.6 --pixels 224 --batch 16
    python benchmarks/performance/finetune_step.py tf_efficientnet_lite0 --key-layer blocks.4.2 --pixels 64
    python benchmarks/performance/finetune_step.py resnet50 --key-layer layer3.0 --pixels 224 --batch 256 \\
        --device cuda --precision bf16 --out results.json

Networks have random weights, images are noise. In each repeat every method takes one step, one after the other; a
ratio is the median over the repeats of full fine-tuning's time to the method's of the same repeat. The bound is the
ratio of the floating-point operations that torch.utils.flop_counter counts in a step, with convolutions of groups
counted as they are: torch's own formula for their gradients takes no notice of groups. A step is forward, backward
and AdamW; "cached" starts from what the frozen prefix gave. On a CPU the seconds are those of this process, whoever
else computes. Peak memory is what a step allocates at most beyond weights, batch and the optimizer's state, plus that
state: from the profiler's record of every allocation, or from the allocator's own peak on a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nc_finetune import ImageClassifier, TimmBackbone
from nc_finetune.backbones import FrozenPrefix, PrefixOutput, resumed
from nc_finetune.methods import (
    AdapterTuning,
    FinetuningMethod,
    FullFinetuning,
    LayerFinetuning,
    LinearProbe,
    SideFinetuning,
    SkipConnectionFinetuning,
)
from nc_finetune.run.provenance import environment

CLASSES = 10
REFERENCE = "full FT"
LORA = "LoRA, rank 8 (peft)"


def convolution_backward_flops(
    grad: list[int], _inputs: list[int], weight: list[int], *others: Any, out_shape: Any = None
) -> int:
    """Count each of the two gradients as the forward pass; torch's own count takes no notice of groups."""
    output_mask = others[-1]
    once = 2 * math.prod(weight) * grad[0] * math.prod(grad[2:])
    return once * sum(output_mask[:2])


class Candidate:
    """A method that takes one step at a time on the same batch."""

    def __init__(
        self,
        options: argparse.Namespace,
        method: FinetuningMethod,
        *,
        cached: bool,
        frozen: bool = False,
        prepare: Callable[[ImageClassifier], Any] | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.options = options
        self.model = ImageClassifier(TimmBackbone(options.network, None), CLASSES, method=method).to(options.device)
        if frozen:  # as Lightning's callback leaves it before it unfreezes
            self.model.backbone.train()
            BackboneFinetuning.freeze(self.model.backbone)
        self.prepared = None if prepare is None else prepare(self.model)  # held: what it has changed ends with it
        self.split: FrozenPrefix | None = None
        trained = [value for value in self.model.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=options.fused)
        images = torch.rand(options.batch, 3, options.pixels, options.pixels, device=options.device)
        self.labels = torch.arange(options.batch, device=options.device) % CLASSES
        self.batch: Tensor | PrefixOutput = images
        if cached:
            self.model.eval()
            with self._precision():
                self.split = FrozenPrefix(self.model, images[:4])
                self.batch = self.split.prefix(images)
            self.model.train()

    def _precision(self) -> Any:
        if self.options.precision == "32":
            return nullcontext()
        return torch.autocast(self.options.device, torch.bfloat16)

    def backpropagate(self) -> Tensor:
        with self._precision(), resumed(self.batch, self.split) as images:
            loss = self.model.loss(self.model(images), self.labels)
        loss.backward()
        return loss.detach()

    def step(self) -> Tensor:
        loss = self.backpropagate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def forward(self) -> None:
        """Run once without a graph: what filling the cache costs, or a pass over the data."""
        with torch.no_grad(), self._precision(), resumed(self.batch, self.split) as images:
            self.model(images)

    def flops(self) -> int:
        formulas = {torch.ops.aten.convolution_backward: convolution_backward_flops}
        with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            self.backpropagate()
        self.optimizer.zero_grad()
        return counter.get_total_flops()

    def memory(self) -> int:
        """Bytes at most beyond weights and batch."""
        state = [value for group in self.optimizer.state.values() for value in group.values()]
        kept = sum(value.nbytes for value in state if isinstance(value, Tensor))
        peak = _peak_on_gpu(self.step) if self.options.device == "cuda" else _peak_on_cpu(self.step)
        return kept + peak


def _peak_on_gpu(step: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(step: Callable[[], Any]) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def make_candidates(options: argparse.Namespace) -> dict[str, Callable[[], Candidate]]:
    layer = options.key_layer

    def make(method: Callable[[], FinetuningMethod], **how: bool) -> Callable[[], Candidate]:
        return lambda: Candidate(options, method(), **{"cached": False, **how})

    def skip() -> FinetuningMethod:
        return SkipConnectionFinetuning(layer)

    convolutional = "vit" not in options.network
    # Convolutions without groups in a residual net, linear layers of the attention in a transformer.
    targets = [r".*\.conv[123]"] if options.network.startswith("resnet") else None
    everywhere = {"target_modules": "|".join(targets)} if convolutional and targets else {}
    return {
        REFERENCE: make(FullFinetuning),
        "layer FT": make(lambda: LayerFinetuning(layer)),
        "layer FT, cached": make(lambda: LayerFinetuning(layer), cached=True),
        "SCL-FT": make(skip),
        "SCL-FT, cached": make(skip, cached=True),
        "side FT": make(lambda: SideFinetuning(layer)),
        "side FT, cached": make(lambda: SideFinetuning(layer), cached=True),
        LORA: make(lambda: AdapterTuning(rank=8, **everywhere)),
        "BackboneFinetuning, frozen": make(LinearProbe, frozen=True),
        "linear probe, cached": make(LinearProbe, cached=True),
    }


def seconds(call: Callable[[], Any], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    candidates = {name: build() for name, build in make_candidates(options).items()}
    for name, candidate in candidates.items():
        candidate.step()  # warm up; the optimizer's state is there from now on
        candidate.step()
        rows[name] = {"flops": candidate.flops(), "memory": candidate.memory()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(options.repeats):
        for name, candidate in candidates.items():
            times[name].append(seconds(candidate.step, options.device))
    reference = times[REFERENCE]
    for name, own in times.items():
        row = rows[name]
        row["seconds"] = statistics.median(own)
        row["ratio"] = statistics.median(a / b for a, b in zip(reference, own, strict=True))
        row["bound"] = rows[REFERENCE]["flops"] / max(row["flops"], 1)
        row["to_bound"] = row["ratio"] / row["bound"]
        row["memory_share"] = row["memory"] / rows[REFERENCE]["memory"]
        row["to_lora"] = statistics.median(b / a for a, b in zip(times[LORA], own, strict=True))
    _measure_fill(candidates["layer FT, cached"], candidates["layer FT"], rows["layer FT, cached"])
    return rows


def _measure_fill(cached: Candidate, plain: Candidate, row: dict[str, float]) -> None:
    """Compare filling the cache with a forward pass through the whole network."""
    device, repeats = cached.options.device, range(cached.options.repeats)
    fills, passes = (
        [seconds(call, device) for _ in repeats] for call in (partial(_fill, cached, plain), plain.forward)
    )
    row["fill_to_forward"] = statistics.median(fills) / statistics.median(passes)


def _fill(cached: Candidate, plain: Candidate) -> None:
    if cached.split is not None and isinstance(plain.batch, Tensor):
        cached.split.prefix(plain.batch)


def show(rows: dict[str, dict[str, float]], title: str) -> None:
    columns = ("ms a step", "ratio", "bound", "of bound", "peak MB", "of full FT's", "time of LoRA's")
    table = Table("method", *columns, title=title)
    for name, row in rows.items():
        table.add_row(
            name,
            f"{1e3 * row['seconds']:.1f}",
            *(f"{row[key]:.2f}" for key in ("ratio", "bound", "to_bound")),
            f"{row['memory'] / 1e6:.0f}",
            *(f"{row[key]:.2f}" for key in ("memory_share", "to_lora")),
        )
    console = Console(width=120)
    console.print(table)
    console.print(f"filling the cache costs {rows['layer FT, cached']['fill_to_forward']:.2f} of a forward pass")


def describe(options: argparse.Namespace) -> dict[str, Any]:
    where = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    return {
        **{key: str(value) for key, value in vars(options).items()},
        "threads": torch.get_num_threads(),
        "device_name": where,
        "cpus": os.cpu_count(),
        **environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a network of timm")
    parser.add_argument("--key-layer", required=True)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="32", choices=["32", "bf16"])
    parser.add_argument("--fused", action="store_true", help="AdamW in one kernel")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch.profiler|peft")
    rows = measure(options)
    title = f"{options.network} {options.key_layer}, {options.pixels} px, batch {options.batch}, {options.device}"
    show(rows, title)
    if options.out:
        options.out.write_text(json.dumps({"setting": describe(options), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
