"""``python -m benchmarks.theory [name ...] --out DIR [--short]``: exit status 1 if a claim fails."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.theory.core.runner import run_all
from benchmarks.theory.experiments.catalogue import EXPERIMENTS, find


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.theory", description="Run and check the theory bench.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"default: all of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/theory"), help="folder of the results (%(default)s)")
    parser.add_argument("--short", action="store_true", help="tiny sizes: the form that the tests run")
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time, each a process (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch in each (%(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        names = [find(name).name for name in chosen.names or EXPERIMENTS]
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(chosen.threads)
    passed = run_all(names, chosen.out, Console(), short=chosen.short, jobs=chosen.jobs)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
