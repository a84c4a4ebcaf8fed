"""Which methods work on which network: each recipe of a backbone, built in full, tuned for a step by each method.

    python -m benchmarks.backbones                     # all, and write docs/backbones.md: some minutes, 8 GB of memory
    python -m benchmarks.backbones mobilenetv4_medium  # some, and print their lines

Weights are random, so nothing is fetched and no accuracy is told. A method works where a step on four images of random
pixels ends without an error, and moves weights that it tunes and no others, to the bit.
"""

from __future__ import annotations

import argparse
import logging
import warnings

from benchmarks.backbones.page import PAGE, measure, page, recipe_names
from nc_finetune._common.atomic_files import write_text_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="recipes of backbones (default: all, and write the page)")
    given = parser.parse_args().recipes
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    measured = []
    for recipe in given or recipe_names():
        measured.append(measure(recipe))
        print(*measured[-1], sep="\n", flush=True)
    if not given:
        write_text_atomically(PAGE, page(measured))


if __name__ == "__main__":
    main()
