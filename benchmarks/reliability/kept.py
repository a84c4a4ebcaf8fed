"""Figures that are measured once, and the page that they go to."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

Figures = dict[str, float]
RESULTS = Path(__file__).parents[1] / "results" / "reliability"


def once(path: Path, measure: Callable[[], Figures]) -> Figures:
    """Return what a file holds, or measure and write it there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(measure(), indent=1) + "\n")
        partial.replace(path)
    found: Figures = json.loads(path.read_text())
    return found


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """Return mean ± standard deviation."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def circumstances(*packages: str) -> str:
    """Say of which tree, with which versions, on what."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit, dirty = (
        subprocess.run([*git, *words], check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603
        for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    )
    found = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", *packages))
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    return f"{found}; {threads} of {platform.machine()}; tree {commit}{', with changes' * bool(dirty)}"
