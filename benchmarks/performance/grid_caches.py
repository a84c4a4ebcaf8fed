"""What shared caches are worth to a grid on digits: a probe, layer FT, SCL-FT and side FT, and full FT beside them.

    python benchmarks/performance/grid_caches.py [--samples-per-class 100] [--seeds 0 1 2] [--epochs 15]

Processor seconds for all cells of a method, every one whole: weights, data, fit, validation, NC1 of every layer, test.
Of each seed the grid runs with caches and then without; a cell that is not counted warms the process up. Full FT has no
frozen part: caches save it nothing but decoding; it is left out with --without-full. EfficientNet-Lite0 with ImageNet
weights, 64 px (extra offline).

Results are the same to every digit where all batches are of one size, as here: 1,000 images in batches of 40. In
batches of 32 the last holds 8, for which some kernels round otherwise; which images are in it differs from epoch to
epoch, but a cache computes each image once.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

from nc_finetune.results.result import Result
from nc_finetune.run import run_cell
from nc_finetune.run.cell import Cell, Settings
from nc_finetune.run.grid import Grid
from nc_finetune.run.specs import BackboneSpec, DatasetSpec, MethodSpec

BLOCK = "blocks.4.2"
METHODS = (
    MethodSpec(method="LinearProbe", learning_rates=[3e-3]),
    MethodSpec(method="LayerFinetuning", learning_rates=[3e-3]),
    MethodSpec(method="SkipConnectionFinetuning", learning_rates=[3e-3]),
    MethodSpec(method="SideFinetuning", learning_rates=[3e-3]),
    MethodSpec(method="FullFinetuning", learning_rates=[3e-4]),
)
Times = dict[bool, dict[str, float]]


def cells_of(seed: int, settings: Settings, samples_per_class: int, methods: Sequence[MethodSpec]) -> list[Cell]:
    """Return the cells of a seed."""
    return Grid(
        backbones=[BackboneSpec(name="tf_efficientnet_lite0", weights="package", key_layer=BLOCK)],
        datasets=[DatasetSpec(source="sklearn:digits", name="digits", image_size=64)],
        methods=list(methods),
        samples_per_class=[samples_per_class],
        seeds=[seed],
        settings=settings,
    ).cells()


def run_all(cells: list[Cell], cache: bool, seconds: dict[str, float]) -> list[Result]:
    """Run cells and add up the processor time of each method."""
    results = []
    for cell in cells:
        start = time.process_time()
        results.append(run_cell(replace(cell, cache=cache)))
        seconds[results[-1].method] += time.process_time() - start
        if results[-1].status != "ok":
            raise RuntimeError(f"{results[-1].run_id}: {results[-1].error}")
    return results


def difference(pairs: list[tuple[Result, Result]], method: str) -> str:
    """Say how far apart results with and without caches are."""
    of_method = [(cached, plain) for cached, plain in pairs if cached.method == method]
    points = max(abs((cached.accuracy or 0) - (plain.accuracy or 0)) for cached, plain in of_method)
    nc1 = max(abs((cached.nc1 or 0) / (plain.nc1 or 1) - 1) for cached, plain in of_method)
    return f"{points:.2f} points, {nc1:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples-per-class", type=int, default=100)
    parser.add_argument("--without-full", action="store_true", help="leave full FT out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=40)
    options = parser.parse_args()
    settings = Settings(epochs=options.epochs, batch_size=options.batch_size)
    chosen = METHODS[:-1] if options.without_full else METHODS
    run_cell(replace(cells_of(0, replace(settings, epochs=1), options.samples_per_class, chosen)[0], cache=False))
    times: Times = {cache: defaultdict(float) for cache in (True, False)}
    pairs: list[tuple[Result, Result]] = []
    for seed in options.seeds:
        cells = cells_of(seed, settings, options.samples_per_class, chosen)
        cached, plain = (run_all(cells, cache, times[cache]) for cache in (True, False))
        pairs += zip(cached, plain, strict=True)
    table = Table("method", "cached s", "plain s", "times as fast", "accuracy, NC1 apart by at most", title="One grid")
    methods = list(times[True])
    frozen = [method for method in methods if method != "full_ft"]
    sums = [("with a frozen part", frozen), *([] if frozen == methods else [("all", methods)])]
    for name, members in [*((method, [method]) for method in methods), *sums]:
        ours, theirs = (sum(times[cache][method] for method in members) for cache in (True, False))
        apart = difference(pairs, name) if name in methods else ""
        table.add_row(name, f"{ours:.1f}", f"{theirs:.1f}", f"{theirs / ours:.2f}", apart)
    Console(width=120).print(table)
    Console().print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {len(options.seeds)} seed(s)")


if __name__ == "__main__":
    main()
