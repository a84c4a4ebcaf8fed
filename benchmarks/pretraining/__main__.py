"""Whether networks whose features collapse more on a task transfer better to it: small ones, pre-trained on CIFAR-100.

    DATA=folder python -m benchmarks.pretraining --out runs/pretraining [--only plain mse] [--epochs 1]

One network of settings.yaml after the other is pre-trained, tried on the grids of the settings, and its frozen feature
scored on each training sample. All of it goes to a folder of its own, OUT/<network>: weights, facts.json, a folder of
results for each grid, and at the end scores.json. A network with scores is done, and needs its weights no more; one
that was interrupted goes on where it was. OUT/pretraining.md tells which score orders those networks as the accuracies
do that are done. ``--only`` takes some networks, so that several commands share the work; ``--epochs`` shortens the
training to see whether all runs.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from benchmarks.pretraining.networks import FACTS, WEIGHTS, Pretraining, pretrain, read_networks, shortened
from benchmarks.pretraining.picture import draw
from benchmarks.pretraining.scores import score
from benchmarks.pretraining.tables import Measured, accuracies_of, page, scores_of
from nc_finetune._common.atomic_files import write_atomically, write_text_atomically
from nc_finetune.results.result import Result, read_results
from nc_finetune.run.grid import Grid, read_grid
from nc_finetune.run.runner import run_grid

SETTINGS = Path(__file__).parent / "settings.yaml"
SCORES = "scores.json"
_DATA = "${DATA}"
Grids = dict[str, dict[str, Any]]  # "home" and "transfer", each without its backbone


@dataclass(frozen=True)
class Tried:
    """What is known of a network that is done.

    Attributes:
        network: How it was pre-trained.
        facts: As :func:`~benchmarks.pretraining.networks.pretrain` returns them.
        results: Of the grids, with the name of the network in place of its weights.
        scores: By data set and sample.
    """

    network: Pretraining
    facts: dict[str, Any]
    results: list[Result]
    scores: dict[tuple[str, int], dict[str, float]]


def grid_of(name: str, parts: dict[str, Any], network: Pretraining, folder: Path) -> Grid:
    """Write a grid with its backbone, and read it as any other."""
    spec = network.spec(folder / WEIGHTS)
    chosen = {"model_options": spec.model_options, "key_layer": "auto"}  # by short trials on folds
    backbone = {"name": spec.name, "weights": spec.weights, **chosen}
    file = folder / f"{name}.yaml"
    write_text_atomically(file, yaml.safe_dump({"backbones": [backbone], **parts}, sort_keys=False))
    return read_grid(file)


def try_network(network: Pretraining, grids: Grids, folder: Path, console: Console) -> None:
    """Run the grids on a network that is pre-trained, and score it on every training sample of them."""
    if not (folder / WEIGHTS).exists():
        raise ValueError(f"{folder} is not done, and its weights are gone; remove it, and it is trained again")
    found = []
    for name, parts in grids.items():
        grid = grid_of(name, parts, network, folder)
        run_grid(grid, folder / name, console)
        for (task, seed), cell in {(cell.dataset_name, cell.seed): cell for cell in grid.cells()}.items():
            sizes = (cell.samples_per_class, cell.seed, cell.settings.batch_size, cell.settings.num_workers)
            found.append({"task": task, "seed": seed, **score(cell.backbone, cell.data_spec.build(*sizes))})
    content = {"grids": grids, "scores": found}
    write_text_atomically(folder / SCORES, json.dumps(content, indent=1))  # last: with it the network is done


def read_tried(network: Pretraining, grids: Grids, folder: Path) -> Tried | None:
    """Read what is known of a network; ``None`` where it is not done.

    Raises:
        ValueError: If it was tried on another grid.
    """
    file = folder / SCORES
    if not file.exists():
        return None
    content = json.loads(file.read_text())
    if content["grids"] != json.loads(json.dumps(grids)):
        raise ValueError(f"{folder} was tried on other grids than those of the settings; remove it, or name another")
    found = [run for name in grids for run in read_results(folder / name / "results")]
    results = [replace(run, weights=network.name) for run in found]
    scores = {(one.pop("task"), one.pop("seed")): one for one in content["scores"]}
    return Tried(network, json.loads((folder / FACTS).read_text()), results, scores)


def write_page(tried: Sequence[Tried], grids: Grids, file: Path) -> None:
    """Tell what came of the networks that are done."""
    names = [data.get("name") or data["source"] for parts in grids.values() for data in parts["datasets"]]
    results = sorted((run for one in tried for run in one.results), key=lambda run: names.index(run.dataset))
    scores = {(one.network.name, *key): values for one in tried for key, values in one.scores.items()}
    measured = Measured(
        [one.network for one in tried],
        {one.network.name: one.facts for one in tried},
        accuracies_of(results),
        scores_of(scores, results),
        names[0],
    )
    used = [run.provenance for run in results]
    versions = sorted({f"{name} {known['versions'][name]}" for known in used for name in ("torch", "timm")})
    commits = sorted({str(known.get("git_commit") or "unknown")[:12] for known in used})
    devices = sorted({str(known["device"]) for known in used})
    transfer = grids["transfer"]
    (size,), seeds = transfer["samples_per_class"], len(transfer["seeds"])
    about = (
        f"{len(tried)} networks, each pre-trained as settings.yaml says on {measured.source};"
        f" {size} images a class, {seeds} {'sample' if seeds == 1 else 'samples'}."
        f" {', '.join(versions)}, on {', '.join(devices)}, commit {', '.join(commits)}."
    )
    write_atomically(file.with_suffix(".png"), draw(measured))
    write_text_atomically(file, page(measured, about, file.with_suffix(".png").name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="another file of settings")
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--only", nargs="+", metavar="NETWORK", help="these alone")
    parser.add_argument("--epochs", type=int, help="no more than so many")
    options = parser.parse_args()
    settings, console = yaml.safe_load(options.settings.read_text()), Console(stderr=True)
    networks, grids = read_networks(settings), {name: settings[name] for name in ("home", "transfer")}
    if unknown := {*(options.only or ())} - {network.name for network in networks}:
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {', '.join(n.name for n in networks)}")
    networks = shortened(networks, options.epochs) if options.epochs else networks
    home = grids["home"]["datasets"][0]["source"]
    if _DATA in home and "DATA" not in os.environ:
        parser.error("DATA must name the folder that has a folder of each data set")
    for network in networks:
        folder = options.out / network.stem
        if (options.only and network.name not in options.only) or read_tried(network, grids, folder):
            continue
        facts = pretrain(network, home.replace(_DATA, os.environ.get("DATA", "")), folder)
        console.print(f"{network.name}: {facts['seconds']:.0f} s, loss {facts['loss']}")
        try_network(network, grids, folder, console)
    known = (read_tried(network, grids, options.out / network.stem) for network in networks)
    done = [tried for tried in known if tried is not None]
    file = options.out / "pretraining.md"
    if not done:
        parser.error(f"no network of the settings is done in {options.out}")
    write_page(done, grids, file)
    console.print(f"{len(done)} of {len(networks)} networks: {file}")


if __name__ == "__main__":
    main()
