"""The row of `nc-finetune tune` in the report of a grid: on the very images of its cells, test images looked at once.

    DATA=folder python -m benchmarks.fair benchmarks/fair --out runs/fair [--seeds 0 1] [--larger-images]

For every data set, training size and seed of a grid of one backbone, the training images of its cells go as a table to
`tune`, with its default time and that one network; so do the test images, which it looks at once, at the end. What it
comes to is written into the grid's folder of results, as a run of the method `tune`, with the time of everything that
it tried; `nc-finetune report` then compares it, sample by sample. Images are those of the grid's size unless
`--larger-images` lets tune choose. What is there already is not run again.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
from rich.console import Console

from nc_finetune import ImageData, tune
from nc_finetune.cli.recipes import find_recipe
from nc_finetune.results.result import Result, write_result
from nc_finetune.run import read_grid
from nc_finetune.run._cell.outcome import planned_result, with_data, with_network
from nc_finetune.run._cell.work import counted_work
from nc_finetune.run.cell import Cell
from nc_finetune.run.grid import Grid
from nc_finetune.run.specs import HeadSpec, MethodSpec

_SPLITS = ("train", "test")


def write_images(data: ImageData, folder: Path) -> Path:
    """Write the training and test images of a sample as tables, encoded as they are."""
    labels = datasets.ClassLabel(names=list(data.class_names))
    for split in _SPLITS:
        images = data.images(split)
        encoded = [dict(images.table.encoded(row)) for row in images.indices]
        for image in encoded:
            image["bytes"] = image["bytes"] or Path(image["path"]).read_bytes()
        features = datasets.Features({"image": datasets.Image(decode=False), "label": labels})
        rows = {"image": encoded, "label": [images.table.labels[row] for row in images.indices]}
        table = datasets.Dataset.from_dict(rows, features=features).cast_column("image", datasets.Image())
        table.to_parquet(str(folder / f"{split}.parquet"))
    return folder


def samples(grid: Grid) -> list[Cell]:
    """Return one cell for each data set, training size and seed, seeds outermost."""
    if len(grid.backbones) > 1:
        raise SystemExit(f"a grid of one backbone is needed, this one has {len(grid.backbones)}")
    cells = {(cell.seed, cell.dataset_name, cell.samples_per_class): cell for cell in grid.cells()}
    backbone, method = replace(grid.backbones[0], key_layer=None), MethodSpec(method="LayerReadout")
    return [replace(cell, backbone=backbone, method=method, head=HeadSpec()) for cell in cells.values()]


def label_of(larger_images: bool) -> str:
    """Name the row."""
    return "tune, larger images" if larger_images else "tune"


def name_of(cell: Cell, label: str) -> str:
    """Name a run as a file can be named, whatever its data set is called."""
    words = f"{cell.dataset_name}-{cell.backbone.name}-{label}-n{cell.samples_per_class}-s{cell.seed}"
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", words)


def run(cell: Cell, larger_images: bool) -> Result:
    """Tune on the images of a cell, and say what it came to as a run of the grid."""
    spec = cell.data_spec
    data = spec.build(cell.samples_per_class, cell.seed, cell.settings.batch_size, cell.settings.num_workers)
    label = label_of(larger_images)
    known = with_network(with_data(planned_result(cell), cell, data), cell)
    config = {**known.config, "method": {"method": label, "learning_rates": [], "options": {}}}
    network = f"{cell.backbone.name}={cell.backbone.weights or 'null'}"
    with counted_work(cell.settings.count_flops) as work, TemporaryDirectory() as folder:
        place = write_images(data, Path(folder))
        size = {} if larger_images else {"image_size": spec.image_size}
        found = tune(place, Path(folder) / "tuned", backbones=[network], seed=cell.seed, **size)
    if found.test is None:
        raise SystemExit(f"tune looked at no test images of {cell.dataset_name}")
    return replace(
        known,
        run_id=name_of(cell, label),
        method=label,
        config=config,
        accuracy=100 * found.test.accuracy,
        notes=[found.decision],
        run_seconds=work.seconds,
        processor_seconds=None if cell.settings.count_flops else work.processor_seconds,
        flops=work.flops,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="of the grid")
    parser.add_argument("--out", type=Path, required=True, help="folder of the grid's runs")
    parser.add_argument("--seeds", type=int, nargs="+", help="of these alone")
    parser.add_argument("--larger-images", action="store_true", help="let tune choose the size of images")
    options = parser.parse_args()
    console = Console()
    for cell in samples(read_grid(find_recipe(options.recipe))):
        if options.seeds and cell.seed not in options.seeds:
            continue
        name = f"{cell.dataset_name}, seed {cell.seed}"
        place = options.out / "results"
        if (place / f"{name_of(cell, label_of(options.larger_images))}.json").exists():
            continue
        result = run(cell, options.larger_images)
        write_result(result, place)
        console.print(f"{name}: {result.accuracy:.1f} %, {result.run_seconds:.0f} s; {result.notes[0]}")


if __name__ == "__main__":
    main()
