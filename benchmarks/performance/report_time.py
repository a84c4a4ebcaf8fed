"""How long a report of many cells takes to write, and how large it is.

    python benchmarks/performance/report_time.py --cells 200 729

Every number is of a process of its own: seconds of the wall clock and of the processor from the folder of results to
the three files, as `nc-finetune report` does it, imports included. Results are made up, in the layout of
recipes/benchmarks/low_data.yaml: three data sets, three backbones, three training sizes, nine methods, and seeds.
"""

from __future__ import annotations

import argparse
import itertools
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nc_finetune.results.result import Result, write_result

DATASETS = {"digits": 10, "fashion-mnist": 10, "cifar10-jpeg": 10}
BACKBONES = tuple(f"tf_efficientnet_lite{size}" for size in range(3))
SIZES = (5, 20, 100)
TUNED = {
    "linear_probe": 0.4,
    "bias_tuning": 1.0,
    "norm_tuning": 1.6,
    "adapter": 5.1,
    "layer_ft": 5.4,
    "scl_ft": 5.4,
    "scl_ft matched": 5.4,
    "lp_ft": 5.4,
    "full_ft": 100.0,
}
LAYERS = ("stem", *(f"blocks.{stage}.{block}" for stage in range(7) for block in range(3)), "penultimate")
TRAIN, TEST, EPOCHS = 200, 2000, 15


def confusion(classes: int, accuracy: float, chance: random.Random) -> list[str]:
    rows = []
    for label in range(classes):
        right = round(TEST / classes * accuracy / 100)
        counts = {(label + step) % classes: chance.randint(1, 9) for step in range(1, 6)}
        rows.append(" ".join(f"{other}:{count}" for other, count in sorted({**counts, label: right}.items())))
    return rows


def made_up(dataset: str, backbone: str, size: int, name: str, seed: int) -> Result:
    chance = random.Random(f"{dataset}{backbone}{size}{name}{seed}")  # noqa: S311
    method, _, scale = name.partition(" ")
    nc1, accuracy = chance.uniform(0.3, 9.0), chance.uniform(40.0, 98.0)
    tuned: dict[str, Any] = {"options": {"scale": scale}} if scale else {}
    return Result(
        run_id=f"{dataset}-{backbone}-{name.replace(' ', '_')}-n{size}-s{seed}",
        backbone=backbone,
        weights="package",
        dataset=dataset,
        method=method,
        seed=seed,
        samples_per_class=size,
        train_size=size * DATASETS[dataset],
        accuracy=accuracy,
        val_accuracy=accuracy,
        nc1=nc1,
        nc1_layers={layer: nc1 * (len(LAYERS) - place) for place, layer in enumerate(LAYERS)},
        collapse={"nc1": nc1, "nc2_etf_distance": chance.random(), "nc3_etf_distance": chance.random(), "nc4": 0.0},
        tuned_percent=TUNED[name],
        learning_rate=3e-3,
        learning_rates={"0.003": accuracy, "0.01": accuracy - 1},
        epochs=EPOCHS,
        epoch_seconds=chance.uniform(0.1, 4.0),
        peak_memory_bytes=chance.randrange(2**29, 2**31),
        delta_bytes=chance.randrange(50_000, 14_000_000),
        learning_curve={
            "train_loss": [2.3 / (1 + epoch) for epoch in range(EPOCHS)],
            "train_accuracy": [90.0 - 60 / (1 + epoch) for epoch in range(EPOCHS)],
        },
        class_names=[f"class {label}" for label in range(DATASETS[dataset])],
        confusion=confusion(DATASETS[dataset], accuracy, chance),
        provenance={"versions": {"torch": "2.6"}, "git_commit": "0" * 40, "data_fingerprint": f"{dataset}{seed}"},
        **tuned,
    )


def results() -> Iterator[Result]:
    """Make up cells without an end, seed by seed, so that any number of them compares fairly."""
    for seed in itertools.count():
        for cell in itertools.product(DATASETS, BACKBONES, SIZES, TUNED):
            yield made_up(*cell, seed)


def measure(cells: int) -> tuple[float, float, dict[str, int]]:
    """Return seconds of the wall clock, of the processor, and bytes by file."""
    with tempfile.TemporaryDirectory() as folder:
        for result in itertools.islice(results(), cells):
            write_result(result, Path(folder) / "results")
        code = "import sys; from nc_finetune.cli import main; sys.exit(main(sys.argv[1:]))"
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code, "report", folder], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        files = ("report.html", "report.md", "results.csv")
        return wall, processor, {name: (Path(folder) / name).stat().st_size for name in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[200, 729])
    parser.add_argument("--write", type=Path, help="write the results of the last number of cells to a folder, only")
    options = parser.parse_args()
    if options.write:
        for result in itertools.islice(results(), options.cells[-1]):
            write_result(result, options.write / "results")
        return
    table = Table("cells", "wall s", "processor s", "report.html MB", "report.md MB", "results.csv MB")
    for cells in options.cells:
        wall, processor, sizes = measure(cells)
        table.add_row(str(cells), f"{wall:.1f}", f"{processor:.1f}", *(f"{size / 1e6:.2f}" for size in sizes.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
