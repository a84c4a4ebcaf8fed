"""What is measured of one training sample: figures by name, which can be kept as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import torch

from benchmarks.readout.discriminants import LONG, path
from benchmarks.readout.readouts import (
    LAYERS,
    PREFERRED,
    Case,
    Layers,
    Rule,
    automatic,
    beats,
    choose,
    folded,
    folds_of,
    probe,
    side_by_side,
)
from benchmarks.readout.variants import Variant

Figures = dict[str, float]
RULES: tuple[Rule, ...] = ("accuracy", "likelihood")
ERRORS = (0, 0.5, 1, 2)
# Lists of shrinkages by their names in results.
LISTS: dict[str, tuple[float, ...]] = {
    "17 values": LONG,
    "none between 0.9 and 1": tuple(s for s in LONG if s < 0.9 or s == 1),
    "every second": LONG[::2],
}
ORDERS, FOLDS = 20, 5
MIRRORED = f"{PREFERRED} + std, mirror images"


def shrinkages_of(case: Case) -> Figures:
    """Return how far choices lie below the best shrinkage on held-out images, means over the choices of layers."""
    found: dict[str, list[float]] = {}
    for points in case.paths.values():
        best = max(case.accuracy(point.held_out) for point in points)
        for name, listed in LISTS.items():
            for rule in RULES:
                chosen = choose([point for point in points if point.shrinkage in listed], rule)
                found.setdefault(f"{rule}, {name}", []).append(case.accuracy(chosen.held_out) - best)
    return {name: statistics.mean(values) for name, values in found.items()}


def layers_of(case: Case) -> Figures:
    """Return accuracies of every choice of layers, and of each rule that chooses among them."""
    figures: Figures = {name: case.accuracy(point.held_out) for name, point in case.candidates.items()}
    figures["best of them"] = max(figures.values())
    for rule in RULES:
        points = {layers: choose(tried, rule) for layers, tried in case.paths.items()}
        for errors in ERRORS:
            figures[f"{rule}, {errors:g} se"] = case.accuracy(points[automatic(points, errors, rule)].held_out)
    return figures


def readouts_of(case: Case) -> Figures:
    """Return accuracies beside the probe's, of held-out and, named so, of test images; and what ``auto`` chose."""
    plain: tuple[Layers, ...] = ("later_half", "all")
    chosen = automatic(case.candidates, 1)
    logits = {
        "probe": probe(case),
        "penultimate": case.candidates["penultimate"].held_out,
        **{name: choose(case.solved(side_by_side(case.features.plain, name, std=False))).held_out for name in plain},
        **{f"{name} + std": case.candidates[name].held_out for name in LAYERS[1:]},
        MIRRORED: choose(case.solved(side_by_side(case.features.mirrored))).held_out,
        "auto": case.candidates[chosen].held_out,
    }
    figures = {name: case.accuracy(found) for name, found in logits.items()}
    figures |= {f"{name}, test": case.accuracy(found, test=True) for name, found in logits.items()}
    return figures | {"auto chose": float(LAYERS.index(chosen))}


def variant_of(case: Case, variant: Variant) -> Figures:
    """Return by how much a variant is better on held-out images: always taken, or where the training sample says so."""
    found, reference = choose(variant(case)), case.preferred
    gain = case.accuracy(found.held_out) - case.accuracy(reference.held_out)
    taken = beats(found, reference, 1) > 0
    return {"gain": gain, "chosen": gain if taken else 0.0, "taken": float(taken), "shrinkage": found.shrinkage}


def orders_of(case: Case) -> Figures:
    """Return what the order of the samples alone does to the accuracy, over random orders of one sample."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(case.rows), generator=generator) for _ in range(ORDERS)]
    by_shrinkage = {point.shrinkage: case.accuracy(point.held_out) for point in case.paths[PREFERRED]}
    folds = [by_shrinkage[s] for s in _by_folds(case, orders)]
    z = side_by_side(case.features.plain)[torch.cat([case.rows, case.held_out])]
    number = len(case.rows)
    moved: dict[str, list[float]] = {rule: [] for rule in RULES}
    for order in orders:
        points = path(z[:number][order], case.target[order], z[number:])
        for rule in RULES:
            moved[rule].append(case.accuracy(choose(points, rule).held_out))
    figures: Figures = {}
    for name, values in {"five folds": folds, **{f"leave-one-out, {rule}": moved[rule] for rule in RULES}}.items():
        figures |= {f"{name}: std": statistics.stdev(values), f"{name}: range": max(values) - min(values)}
    return figures


def _by_folds(case: Case, orders: Sequence[torch.Tensor]) -> Iterator[float]:
    """Choose the shrinkage by the accuracy over five stratified folds, each time in another order."""
    train = side_by_side(case.features.plain)[case.rows]
    for order in orders:
        logits = folded(train, case.target, folds_of(case.target, order) % FOLDS, LONG)
        right = [int((held.argmax(1) == case.target).sum()) for held in logits]
        yield max(zip(right, LONG, strict=True))[1]


def paired(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard error."""
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
