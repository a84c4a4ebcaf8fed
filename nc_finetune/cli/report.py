"""``nc-finetune report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated


def report(folders: Annotated[list[Path], ("metavar", "DIR")], *, out: Path | None = None) -> int:
    """Write one report of the finished runs of one or several benchmarks.

    Writes report.html (opens from disk without a network), report.md with figures/*.png, and results.csv. What
    failed, could not be read or is there twice is named. NC1 of different conventions is refused.

    Args:
        folders: what --out of a benchmark was
        out: folder that the report goes to (default: the first DIR)

    Examples:
        nc-finetune report runs/mine
        nc-finetune report runs/mine runs/other --out runs/both
    """
    from nc_finetune._common.terminal import say
    from nc_finetune.report.report import write_report
    from nc_finetune.results.merging import merge_results

    results, problems = merge_results(folders)
    for problem in problems:
        say(f"note: {problem}")
    files = write_report(results, out or folders[0], problems)
    print(f"Report: {files.page}")  # noqa: T201
    return 0
