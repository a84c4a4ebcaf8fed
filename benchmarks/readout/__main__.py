"""Which variants of the closed-form readout pay, and how it is to choose: by the training sample alone, on five sets.

    python -m benchmarks.readout --data ../shared/data --features /tmp/readout [--only digits dtd10] [--no-variants]

Pooled outputs of every layer of a frozen EfficientNet-Lite0 with ImageNet weights (extra offline) are taken once, of
images and their mirror images, five training samples a set as the product splits them; all else is algebra on them.
Measured are the readouts beside a probe on the penultimate feature, the rules that choose the shrinkage and the layers,
what the order of the samples alone does, and, after that of all sets, variants of the later half of the layers with
std. Choices look at the training sample alone, by exact leave-one-out (folds where said); held-out images are only
reported: the test split, and of sets with few test images others that were not drawn, up to 1,500.

Features and figures are kept in ``--features``: what is there is not measured again; delete the folder to do so. Of a
run that was cut off, ``--no-variants`` writes what is there. Tables go to ``benchmarks/results/readout/variants.md``.
About an hour on one thread, most of it CIFAR-100.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.readout.features import Features, Setting, features_of
from benchmarks.readout.measured import Figures, layers_of, orders_of, readouts_of, shrinkages_of, variant_of
from benchmarks.readout.readouts import Case
from benchmarks.readout.tables import report
from benchmarks.readout.variants import COSTLY, SINGLE, Variant, with_larger

OUT = Path(__file__).parents[1] / "results" / "readout" / "variants.md"
# Name, folder, pixels, images a class, pixels of the larger images; with the costly variants, and with orders.
SETS = (
    ("digits", "sklearn:digits", 64, 20, 96, True, True),
    ("cifar10-jpeg", "cifar10", 64, 20, 96, True, True),
    ("dtd10", "dtd10", 128, 20, 192, True, True),
    ("pacs-photo", "pacs_photo", 128, 10, None, True, False),
    ("cifar100-jpeg", "cifar100", 64, 10, None, False, False),
)


class Kept:
    """Figures of every sample by set and question, in a file that is written after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.figures: dict[str, dict[str, list[Figures]]] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str, question: str, measure: Callable[[], list[Figures]]) -> None:
        """Measure what is not there."""
        if question not in (found := self.figures.setdefault(name, {})):
            found[question] = measure()
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.figures, indent=1))
            partial.replace(self.path)


def measure(kept: Kept, features: Features, *, orders: bool) -> None:
    """Answer all questions but those of variants on one set."""
    cases = [Case(features, seed) for seed in range(len(features.samples))]
    questions = {"readouts": readouts_of, "layers": layers_of, "shrinkage": shrinkages_of}
    for name, question in questions.items():
        kept.get(features.setting.name, name, lambda question=question: [question(case) for case in cases])  # type: ignore[misc]
    if orders:
        kept.get(features.setting.name, "orders", lambda: [orders_of(cases[0])])


def measure_variants(kept: Kept, features: Features, variants: dict[str, Variant], console: Console) -> None:
    """Measure variants on one set."""
    cases = [Case(features, seed) for seed in range(len(features.samples))]
    for name, variant in variants.items():
        console.print(f"{features.setting.name}: {name}")
        kept.get(
            features.setting.name,
            f"variant: {name}",
            lambda variant=variant: [variant_of(case, variant) for case in cases],  # type: ignore[misc]
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10, cifar100, dtd10, pacs_photo")
    parser.add_argument("--features", type=Path, required=True, help="folder to keep features and figures in")
    parser.add_argument("--only", nargs="+", default=[name for name, *_ in SETS], help="names of sets")
    parser.add_argument("--no-variants", action="store_true", help="leave variants of the later half out")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=120)
    kept = Kept(options.features / "figures.json")

    def taken(name: str, folder: str, pixels: int, per_class: int) -> Features:
        source = folder if ":" in folder else str(options.data / folder)
        return features_of(Setting(name, source, pixels, per_class), options.features)

    chosen = [given for given in SETS if given[0] in options.only]
    for name, folder, pixels, per_class, _, _, orders in chosen:
        console.print(f"{name}: readouts and choices")
        measure(kept, taken(name, folder, pixels, per_class), orders=orders)
    varied = [] if options.no_variants else chosen
    for name, folder, pixels, per_class, *_ in varied:
        measure_variants(kept, taken(name, folder, pixels, per_class), SINGLE, console)
    for name, folder, pixels, per_class, larger, costly, _ in varied:
        variants = COSTLY if costly else {}
        if larger is not None:
            variants = variants | with_larger(taken(name, folder, larger, per_class))
        measure_variants(kept, taken(name, folder, pixels, per_class), variants, console)
    names = {name: f"{pixels} px, {per_class} a class" for name, _, pixels, per_class, *_ in SETS}
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "timm", "scikit-learn", "numpy"))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(report(kept.figures, names, versions))
    console.print(f"written: {OUT}")


if __name__ == "__main__":
    main()
