"""How far probabilities are from shares of right answers, before and after one temperature."""

from __future__ import annotations

import argparse
import statistics

from benchmarks.reliability.kept import RESULTS, Figures, markdown_table, mean_and_spread
from benchmarks.reliability.sets import WORST, add_arguments, figures, mean, shared
from benchmarks.reliability.sources import SIX

__all__ = ["add_arguments", "run"]

TEXT = """# Calibration

`{command}`

{shared}

Expected calibration error in per cent, 15 bins, on the held-out images: of the discriminant's own posteriors, and at
the one temperature that the training images choose, each left out; of temperatures the median, as they go with a
shrinkage that the images choose, too. Some of the error is chance, about a point of 1,500 images.

{found}

{goal}
"""


def run(options: argparse.Namespace) -> None:
    """Measure what is not there, and write the page."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = page(figures(options), options.samples)
    (RESULTS / "calibration.md").write_text(text, encoding="utf-8")


def page(found: dict[str, list[Figures]], samples: int) -> str:
    """Write the table."""
    missed = [SIX[name].name for name, rows in found.items() if mean(rows, "after") > WORST]
    return TEXT.format(
        command="python -m benchmarks.reliability calibration --data ../shared/data --runs FOLDER",
        shared=shared(samples),
        found=markdown_table(
            ("set", "tested on", "accuracy %", "before", "after", "temperature"),
            [
                (
                    SIX[name].name,
                    f"{rows[0]['images']:,}",
                    f"{mean(rows, 'accuracy'):.1f}",
                    *(mean_and_spread([100 * row[key] for row in rows], 1) for key in ("before", "after")),
                    f"{statistics.median(row['temperature'] for row in rows):.1f}",
                )
                for name, rows in found.items()
            ],
        ),
        goal=f"Goal: at most {100 * WORST:.0f} on all sets, mean of the samples: "
        + (f"not reached on {', '.join(missed)}." if missed else "reached."),
    )
