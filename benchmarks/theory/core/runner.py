"""Run experiments: one JSON file and one picture each, a table in the terminal, one page for all."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.theory.core.claims import Claim, number
from benchmarks.theory.core.drawing import to_png
from benchmarks.theory.core.experiment import Experiment, Findings
from benchmarks.theory.core.page import write_page
from benchmarks.theory.experiments.catalogue import EXPERIMENTS, find
from nc_finetune._common.atomic_files import write_atomically, write_text_atomically
from nc_finetune.run.provenance import environment

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


def record(experiment: Experiment[Any], settings: Any, findings: Findings) -> dict[str, Any]:
    """Collect what an experiment says and found."""
    return {
        "name": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "passed": findings.passed,
        "claims": [_claim_record(claim) for claim in findings.claims],
        "notes": findings.notes,
        "description": findings.description,
        "settings": dataclasses.asdict(settings),
        "curves": findings.curves,
    }


def measure(experiment: Experiment[Any], settings: Any) -> tuple[Findings, dict[str, float]]:
    """Run an experiment from the same random state, whatever ran before, and take its time."""
    torch.manual_seed(0)
    np.random.seed(0)
    start, start_cpu = time.perf_counter(), time.process_time()
    findings = experiment.measure(settings)
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}
    return findings, {name: round(value, 1) for name, value in seconds.items()}


def run_experiment(name: str, folder: Path, provenance: dict[str, Any], *, short: bool) -> dict[str, Any]:
    """Run one experiment and write what it found.

    Args:
        name: Of the experiment.
        folder: Where its JSON file and its picture go.
        provenance: What the record says of versions, commit and machine.
        short: Run the short form.

    Returns:
        The record, as it stands in the JSON file.
    """
    torch.set_num_threads(provenance["threads"])
    experiment = find(name)
    settings = experiment.load_settings(short)
    findings, seconds = measure(experiment, settings)
    form = "short" if short else "full"
    written: dict[str, Any] = _rounded(
        {**record(experiment, settings, findings), **seconds, "form": form, "provenance": provenance}
    )
    write_atomically(folder / f"{name}.png", to_png(experiment.draw(findings.curves)))
    write_text_atomically(folder / f"{name}.json", json.dumps(written, allow_nan=False) + "\n")
    return written


def _report(written: dict[str, Any], console: Console) -> None:
    """Print the claims and notes of a record."""
    table = Table("claim", "measured", "expected", "tolerance", "", title=written["title"], title_justify="left")
    for claim in written["claims"]:
        measured = math.nan if claim["measured"] is None else claim["measured"]
        verdict = "[green]pass[/]" if claim["passed"] else "[bold red]FAIL[/]"
        name = claim["name"] + (" *" if claim["amends"] else "")
        table.add_row(name, number(measured), claim["expectation"], number(claim["tolerance"]), verdict)
    console.print(table)
    for note in written["notes"]:
        console.print(note, style="dim")
    console.print(f"{written['name']}: {written['seconds']} s, {written['cpu_seconds']} s of processor time\n")


def _run_each(
    names: Sequence[str], folder: Path, provenance: dict[str, Any], *, short: bool, jobs: int
) -> Iterator[dict[str, Any]]:
    """Run experiments one after the other, or side by side in processes; yield each when it is done."""
    run = functools.partial(run_experiment, folder=folder, provenance=provenance, short=short)
    if jobs == 1:
        yield from map(run, names)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, name) for name in names]):
            yield done.result()


def run_all(names: Sequence[str], folder: Path, console: Console, *, short: bool = False, jobs: int = 1) -> bool:
    """Run experiments, then write ``theory.html`` and ``theory.md`` from all that lie in the folder.

    Args:
        names: What to run.
        folder: Where files go; those of earlier runs of other experiments stay and are shown on the page.
        console: Where the tables go.
        short: Run the short forms.
        jobs: Experiments at a time. Matrices here are small: two processes use two cores, two threads do not.

    Returns:
        Whether every claim holds.
    """
    provenance = environment()  # looks at git before the first file is written
    passed = True
    for written in _run_each(names, folder, provenance, short=short, jobs=jobs):
        _report(written, console)
        passed = passed and written["passed"]
    console.print(f"page: {write_page(folder, EXPERIMENTS)}")
    return passed
