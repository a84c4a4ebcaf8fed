"""Whether networks whose features collapse more on a task transfer better to it: small ones, pre-trained on CIFAR-100.

    DATA=folder python -m benchmarks.pretraining --out runs/pretraining [--only plain mse] [--epochs 1]

Networks of settings.yaml are pre-trained one after the other; weights stay in OUT/weights, what is there is not trained
again. Then the transfer grid of the settings runs on all of them (OUT/results, resumable, report in OUT), the frozen
feature of each is scored on each training sample, and OUT/pretraining.md tells which score orders networks as the
accuracies do. ``--only`` takes some networks, ``--epochs`` shortens the training to see whether all runs.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from benchmarks.pretraining.networks import Pretraining, pretrain, read_networks, shortened
from benchmarks.pretraining.scores import score
from benchmarks.pretraining.tables import Measured, accuracies_of, page, scores_of
from nc_finetune._common.atomic_files import write_text_atomically
from nc_finetune.report.report import write_report
from nc_finetune.run.grid import Grid, read_grid
from nc_finetune.run.provenance import environment
from nc_finetune.run.runner import run_grid

SETTINGS = Path(__file__).parent / "settings.yaml"
_DATA = "${DATA}"


def transfer_grid(settings: dict[str, Any], networks: list[Pretraining], out: Path) -> Grid:
    """Write the grid with its backbones, and read it as any other."""
    backbones = []
    for network in networks:
        spec = network.spec(network.files(out / "weights")[0])
        backbones.append({"name": spec.name, "weights": spec.weights, "model_options": spec.model_options})
    file = out / "transfer.yaml"
    write_text_atomically(file, yaml.safe_dump({"backbones": backbones, **settings["transfer"]}, sort_keys=False))
    return read_grid(file)


def scored(grid: Grid, names: dict[str | None, str], file: Path) -> dict[tuple[str, str, int], dict[str, float]]:
    """Score every network on every training sample of the grid; scores that the file has are not computed again."""
    known: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    found = {}
    for cell in {(c.seed, c.dataset_name, c.backbone.weights): c for c in grid.cells()}.values():
        place = (names[cell.backbone.weights], cell.dataset_name, cell.seed)
        key = json.dumps(place)
        if key not in known:
            sample = (cell.samples_per_class, cell.seed, cell.settings.batch_size, cell.settings.num_workers)
            known[key] = score(cell.backbone, cell.data_spec.build(*sample))
            write_text_atomically(file, json.dumps(known, indent=1))
        found[place] = known[key]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="another file of settings")
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--only", nargs="+", metavar="NETWORK", help="these alone")
    parser.add_argument("--epochs", type=int, help="no more than so many")
    options = parser.parse_args()
    settings, console = yaml.safe_load(options.settings.read_text()), Console()
    networks = read_networks(settings)
    if unknown := {*(options.only or ())} - {network.name for network in networks}:
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {', '.join(n.name for n in networks)}")
    networks = [network for network in networks if not options.only or network.name in options.only]
    networks = shortened(networks, options.epochs) if options.epochs else networks
    home = settings["transfer"]["datasets"][0]
    if _DATA in home["source"] and "DATA" not in os.environ:
        parser.error("DATA must name the folder that has a folder of each data set")
    facts = {}
    for network in networks:
        facts[network.name] = pretrain(
            network, home["source"].replace(_DATA, os.environ.get("DATA", "")), options.out / "weights"
        )
        console.print(f"{network.name}: {facts[network.name]['seconds']:.0f} s, loss {facts[network.name]['loss']}")
    grid = transfer_grid(settings, networks, options.out)
    results = run_grid(grid, options.out)
    write_report(results, options.out)
    weights = options.out / "weights"
    names: dict[str | None, str] = {str(network.files(weights)[0]): network.name for network in networks}
    results = [replace(run, weights=names[run.weights]) for run in results]
    scores = scores_of(scored(grid, names, options.out / "scores.json"), results)
    measured = Measured(networks, facts, accuracies_of(results), scores, home.get("name") or home["source"])
    said = environment()
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "timm", "scikit-learn"))
    seeds, (size,) = len(grid.seeds), grid.samples_per_class
    about = (
        f"{len(networks)} networks, each pre-trained as settings.yaml says on {measured.source};"
        f" {size} images a class, {seeds} samples. {versions}, commit {said.get('git_commit', 'unknown')}."
    )
    file = options.out / "pretraining.md"
    write_text_atomically(file, page(measured, about))
    console.print(f"Page: {file}")


if __name__ == "__main__":
    main()
