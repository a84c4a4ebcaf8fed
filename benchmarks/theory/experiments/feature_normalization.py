"""Feature normalisation: cross-entropy on a product of spheres, minimised by Riemannian optimisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.theory.core import Claim, Experiment, Findings, drawing, largest
from nc_finetune.errors import missing_extra
from nc_finetune.functional import class_statistics, nc1, nc2_etf_distance, nc3_etf_distance

try:
    import pymanopt
    from pymanopt.manifolds import Oblique, Product
    from pymanopt.optimizers import TrustRegions
except ImportError as error:
    raise missing_extra("pymanopt", "theory", "the theory bench") from error


@dataclass(frozen=True)
class Settings:
    """Sizes and temperatures."""

    classes: tuple[int, ...]
    samples_per_class: int
    temperatures: tuple[float, ...]
    gradient: float
    iterations: int
    seed: int


@dataclass(frozen=True)
class Minimum:
    """Where Riemannian optimisation ended."""

    value: float
    gradient: float
    nc1: float
    nc2: float
    nc3: float
    costs: list[float]


def minimal_value(classes: int, temperature: float) -> float:
    """Return cross-entropy at a simplex: logits τ at the true class and −τ/(K − 1) at the others."""
    return math.log1p((classes - 1) * math.exp(-temperature * classes / (classes - 1)))


def minimize(settings: Settings, classes: int, temperature: float) -> Minimum:
    """Minimise over spheres from a random start."""
    labels = torch.arange(classes).repeat_interleave(settings.samples_per_class)
    manifold = Product([Oblique(classes + 2, classes), Oblique(classes + 2, len(labels))])
    costs: list[float] = []

    @pymanopt.function.pytorch(manifold)
    def cost(classifier: Tensor, features: Tensor) -> Tensor:
        value = torch.nn.functional.cross_entropy(temperature * (features.T @ classifier), labels)
        costs.append(value.item())
        return value

    np.random.seed(settings.seed)
    optimizer = TrustRegions(
        verbosity=0, max_iterations=settings.iterations, min_gradient_norm=settings.gradient, max_time=float("inf")
    )
    result = optimizer.run(pymanopt.Problem(manifold, cost), initial_point=manifold.random_point())
    classifier, features = (torch.from_numpy(np.ascontiguousarray(part.T)) for part in result.point)
    means = class_statistics(features, labels).means
    return Minimum(
        float(result.cost),
        float(result.gradient_norm),
        float(nc1(features, labels)),
        float(nc2_etf_distance(means)),
        float(nc3_etf_distance(classifier, means)),
        costs,
    )


def run(settings: Settings) -> Findings:
    """Minimise for all numbers of classes and temperatures."""
    found = {
        temperature: {classes: minimize(settings, classes, temperature) for classes in settings.classes}
        for temperature in settings.temperatures
    }
    first = settings.classes[0]
    return Findings(
        claims=[claim for temperature, ends in found.items() for claim in _claims(settings, temperature, ends)],
        curves={
            f"τ = {temperature:g}": [
                max(cost - minimal_value(first, temperature), 1e-16) for cost in found[temperature][first].costs
            ]
            for temperature in settings.temperatures
        },
        description=(
            f"Cross-entropy above its closed-form minimum by evaluation of the cost, for {first} classes and several "
            "temperatures, on a log scale: all runs end at the minimum."
        ),
    )


def _claims(settings: Settings, temperature: float, found: Mapping[int, Minimum]) -> list[Claim]:
    """Check all numbers of classes at one temperature."""
    distance = min(10 * settings.gradient / _curvature(settings, classes, temperature) for classes in found)
    case = f"τ = {temperature:g}, K = {', '.join(map(str, found))}"
    error = "gradient over curvature, 10 ‖∇F‖ N / (τ exp(−τK/(K − 1)))"
    return [
        Claim(
            name=f"{case}: minimal value is log(1 + (K − 1) exp(−τK/(K − 1))) (largest difference)",
            measured=largest(abs(end.value - minimal_value(classes, temperature)) for classes, end in found.items()),
            tolerance=1e-10,
            basis="closed form at a simplex (Yaras et al. 2022); flat at its minimum",
        ),
        Claim(
            name=f"{case}: Riemannian gradient (largest)",
            measured=largest(end.gradient for end in found.values()),
            tolerance=settings.gradient,
            basis="stopping criterion",
        ),
        *[
            Claim(
                name=f"{case}: {name} (largest)",
                measured=largest(getattr(end, key) for end in found.values()),
                tolerance=distance**2 if key == "nc1" else distance,
                basis=f"squared distance; {error}" if key == "nc1" else error,
            )
            for key, name in (("nc1", "NC1"), ("nc2", "NC2, distance from a simplex"), ("nc3", "NC3, self-duality"))
        ],
    ]


def _curvature(settings: Settings, classes: int, temperature: float) -> float:
    return temperature * math.exp(-temperature * classes / (classes - 1)) / (classes * settings.samples_per_class)


def draw(curves: Mapping[str, Any]) -> Figure:
    """Draw how the cost falls to its minimum."""
    drawn, axes = drawing.figure(1, height=4.0)
    longest = max(len(values) for values in curves.values())
    drawing.lines(axes[0], list(range(1, longest + 1)), curves)
    title = "Cross-entropy on spheres, by trust regions"
    drawing.label(axes[0], title, "evaluation", "cost above the closed form", logy=True)
    return drawn


EXPERIMENT = Experiment(
    name="feature_normalization",
    title="Feature normalisation: a product of spheres",
    source="Yaras et al. 2022, Neural collapse with normalized features: a geometric analysis over the Riemannian "
    "manifold, arXiv:2209.09211",
    settings=Settings,
    run=run,
    draw=draw,
)
