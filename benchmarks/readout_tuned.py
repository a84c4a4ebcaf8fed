"""What tuning adds to the closed-form readout, and solving to tuning: digits, CIFAR-10 and DTD10.

    python -m benchmarks.readout_tuned --data ../shared/data --runs /tmp/readout_tuned [--only "digits, 20 a class"]

EfficientNet-Lite0 with ImageNet weights (extra offline) is tuned by SCL-FT, side FT and full FT under cosine heads, and
by SCL-FT and full FT that begin at the readout of the later half of the layers. At the end of each fit heads are solved
on the tuned network by :class:`~nc_finetune.callbacks.SolveHead`. 100 validation images choose rates, temperatures and
heads; rates and blocks (4.2 or 5.0) are those that suit the trained head, rates in steps by the root of ten until the
best lies at no edge, found on the first sample of 20 a class of each set and kept. No choice looks at test images.

Logits of every training are kept in ``--runs``: what is there is not trained again. Tables go to
``benchmarks/results/readout/tuned.md`` and ``.csv``; ``--only`` leaves out what was not named.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.readout.tuned import TUNINGS, Setting, measure
from benchmarks.readout.tuned_tables import page, rows_of, write_csv

OUT = Path(__file__).parent / "results" / "readout" / "tuned.md"
CHEAP = tuple(name for name in TUNINGS if not name.startswith("full"))


def settings(data: Path) -> tuple[Setting, ...]:
    digits, cifar10, dtd10 = "sklearn:digits", str(data / "cifar10"), str(data / "dtd10")
    return (
        Setting("digits", digits, 64, 20, 3, 10),
        Setting("cifar10-jpeg", cifar10, 64, 20, 3, 10),
        Setting("cifar10-jpeg", cifar10, 64, 100, 2, 6, chosen=False),
        Setting("digits", digits, 64, 100, 2, 6, chosen=False),
        Setting("dtd10", dtd10, 128, 20, 2, 10),
        Setting("dtd10", dtd10, 128, 80, 1, 6, CHEAP, chosen=False),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10 and dtd10")
    parser.add_argument("--runs", type=Path, required=True, help="folder to keep logits in")
    parser.add_argument("--only", nargs="*", help="titles of settings to train; none for the tables alone")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=200)
    wanted = [one for one in settings(options.data) if options.only is None or one.title in options.only]
    for setting in wanted:
        for sample in range(setting.samples):
            measure(setting, sample, options.runs, console.print)
    rows = rows_of(settings(options.data), options.runs)
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "lightning", "timm", "scikit-learn"))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(page(rows, versions))
    write_csv(rows, OUT.with_suffix(".csv"))
    console.print(f"written: {OUT}")


if __name__ == "__main__":
    main()
