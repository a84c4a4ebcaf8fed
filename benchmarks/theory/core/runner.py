"""Run experiments: one JSON file and one picture each, a table in the terminal, one page for all."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.theory.core.claims import Claim, number
from benchmarks.theory.core.drawing import to_svg
from benchmarks.theory.core.experiment import Experiment, Findings
from benchmarks.theory.core.page import write_page
from benchmarks.theory.experiments.catalogue import EXPERIMENTS
from nc_finetune.benchmark.provenance import environment
from nc_finetune.files import write_text_atomically

_DIGITS = 6  # of a curve: more than a picture shows


def _rounded(value: Any) -> Any:
    """Keep what JSON can hold: six digits, and null for what is not finite."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _claim_record(claim: Claim) -> dict[str, Any]:
    return {**dataclasses.asdict(claim), "expectation": claim.expectation, "passed": claim.passed}


def record(experiment: Experiment[Any], settings: Any, findings: Findings, *, short: bool, seconds: float) -> Any:
    """Collect all that is written of one run."""
    return _rounded(
        {
            "name": experiment.name,
            "title": experiment.title,
            "source": experiment.source,
            "form": "short" if short else "full",
            "passed": findings.passed,
            "claims": [_claim_record(claim) for claim in findings.claims],
            "notes": findings.notes,
            "description": findings.description,
            "settings": dataclasses.asdict(settings),
            "seconds": seconds,
            "curves": findings.curves,
            "provenance": environment(),
        }
    )


def claims_table(experiment: Experiment[Any], findings: Findings) -> Table:
    """Lay out the claims for the terminal."""
    table = Table("claim", "measured", "expected", "", title=experiment.title, title_justify="left", expand=True)
    for claim in findings.claims:
        verdict = "[green]pass[/]" if claim.passed else "[bold red]FAIL[/]"
        table.add_row(claim.name + (" *" if claim.amends else ""), number(claim.measured), claim.expectation, verdict)
    return table


def run_experiment(experiment: Experiment[Any], folder: Path, console: Console, *, short: bool) -> bool:
    """Run one experiment and write what it found."""
    settings = experiment.load_settings(short)
    torch.manual_seed(0)
    np.random.seed(0)
    start = time.perf_counter()
    findings = experiment.measure(settings)
    seconds = time.perf_counter() - start
    written = record(experiment, settings, findings, short=short, seconds=round(seconds, 1))
    write_text_atomically(folder / f"{experiment.name}.svg", to_svg(experiment.draw(findings.curves)))
    write_text_atomically(folder / f"{experiment.name}.json", json.dumps(written, allow_nan=False) + "\n")
    console.print(claims_table(experiment, findings))
    for note in findings.notes:
        console.print(note, style="dim")
    console.print(f"{experiment.name}: {seconds:.1f} s\n", style="dim")
    return findings.passed


def run_all(experiments: Sequence[Experiment[Any]], folder: Path, console: Console, *, short: bool = False) -> bool:
    """Run experiments one after the other, then write ``theory.html`` from all that lie in the folder.

    Args:
        experiments: What to run.
        folder: Where files go; those of earlier runs of other experiments stay and are shown on the page.
        console: Where the tables go.
        short: Run the short forms.

    Returns:
        Whether every claim holds.
    """
    environment()  # looks at git before the first file is written
    passed = [run_experiment(experiment, folder, console, short=short) for experiment in experiments]
    console.print(f"page: {write_page(folder, EXPERIMENTS)}")
    return all(passed)
