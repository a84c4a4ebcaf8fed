"""Extended unconstrained features: one more layer, without and with ReLU between."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.theory.core import Claim, Experiment, Findings, drawing, smallest
from benchmarks.theory.models.linear_network import descend
from nc_finetune.functional import class_statistics, nc1, nc2_of_distance, nc3_of_distance, separation_law, vci

_TITLES = {"nc1": "NC1", "nc2": "NC2, orthogonal frame", "nc3": "NC3, self-duality"}


@dataclass(frozen=True)
class Settings:
    """Sizes, weight decay, steps."""

    classes: int
    width: int
    samples_per_class: int
    decays: tuple[float, float, float]
    rate: float
    steps: int
    scale: float
    looks: int
    late: tuple[float, float]
    distance: float
    seed: int

    @property
    def labels(self) -> Tensor:
        """Balanced classes."""
        return torch.arange(self.classes).repeat_interleave(self.samples_per_class)


@dataclass
class Trace:
    """Measures of both levels of features along the training."""

    settings: Settings
    steps: list[int] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)
    shallow: dict[str, list[float]] = field(default_factory=dict)
    before: dict[str, list[float]] = field(default_factory=dict)  # between the first weight and the activation
    deep: dict[str, list[float]] = field(default_factory=dict)
    nuclear_gap: float = math.nan

    def slope(self, level: Mapping[str, list[float]]) -> float:
        """Rate at which log NC1 falls in the middle of the training, per look."""
        first, last = (int(part * len(self.steps)) for part in self.settings.late)
        return float(-separation_law(torch.tensor(level["nc1"][first:last])).slope)


def minimal_value(settings: Settings) -> float:
    """Return the global minimum: K times the best of one singular value.

    Weight decay of three factors is 3/2 (λ_H λ_1 λ_2)^(1/3) times the sum of the singular values of their product to
    the power 2/3; with s = t³ the stationary points solve t⁴ − √n t + N (λ_H λ_1 λ_2)^(1/3) = 0.
    """
    root, total = math.sqrt(settings.samples_per_class), settings.classes * settings.samples_per_class
    level = math.prod(settings.decays) ** (1 / 3)
    roots = np.roots([1.0, 0.0, 0.0, -root, total * level])
    candidates = [0.0] + [float(t.real) for t in roots if abs(t.imag) < 1e-9 and t.real > 0]
    return settings.classes * min((root - t**3) ** 2 / (2 * total) + 1.5 * level * t**2 for t in candidates)


def train(settings: Settings, activation: Callable[[Tensor], Tensor]) -> Trace:
    """Descend from a random start and look at both levels."""
    generator = torch.Generator().manual_seed(settings.seed)
    labels = settings.labels
    shapes = ((settings.width, len(labels)), (settings.width, settings.width), (settings.classes, settings.width))
    start = [settings.scale * torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    targets = torch.eye(settings.classes, dtype=torch.float64)[:, labels]

    def objective(factors: Any) -> Tensor:
        features, first, second = factors
        error = (second @ activation(first @ features) - targets).square().sum() / (2 * len(labels))
        terms = [decay / 2 * factor.square().sum() for decay, factor in zip(settings.decays, factors, strict=True)]
        return error + sum(terms)  # type: ignore[no-any-return]

    trace = Trace(settings)
    for step, (value, factors) in enumerate(descend(start, objective, rates=settings.rate, steps=settings.steps)):
        if step % (settings.steps // settings.looks) == 0:
            _look(trace, step, value, factors, activation)
    return trace


def _look(trace: Trace, step: int, value: float, factors: list[Tensor], activation: Callable[[Tensor], Tensor]) -> None:
    features, first, second = factors
    before = first @ features
    labels = trace.settings.labels
    trace.steps.append(step)
    trace.objective.append(value)
    norms = [float(torch.linalg.matrix_norm(matrix, ord="nuc")) for matrix in (before, activation(before))]
    trace.nuclear_gap = abs(norms[0] / norms[1] - 1)
    for level, layer, weight in (
        (trace.shallow, features, second @ first),
        (trace.before, before, second),
        (trace.deep, activation(before), second),
    ):
        means = class_statistics(layer.T, labels).means
        level.setdefault("nc3", []).append(float(nc3_of_distance(weight, means)))
        level.setdefault("nc1", []).append(float(nc1(layer.T, labels)))
        level.setdefault("nc2", []).append(float(nc2_of_distance(means)))
        level.setdefault("vci", []).append(float(vci(layer.T, labels)))


def run(settings: Settings) -> Findings:
    """Train both models."""
    linear, relu = train(settings, lambda layer: layer), train(settings, torch.relu)
    return Findings(
        claims=[*_linear_claims(settings, linear), *_relu_claims(settings, relu)],
        curves={
            "steps": linear.steps,
            **{
                name: {level: _drawable(getattr(trace, level)) for level in levels}
                for name, trace, levels in (
                    ("linear", linear, ("shallow", "deep")),
                    ("ReLU", relu, ("shallow", "before", "deep")),
                )
            },
        },
        description=(
            "NC1, distance from an orthogonal frame and self-duality of both levels of features by step. Without "
            "ReLU both levels fall at the same rate and both end in an orthogonal frame. With ReLU the deeper level "
            "collapses several times as fast, and only it ends in an orthogonal frame."
        ),
    )


def _drawable(level: Mapping[str, list[float]]) -> dict[str, list[float]]:
    return {name: [max(value, 1e-16) for value in level[name]] for name in _TITLES}


def _linear_claims(settings: Settings, trace: Trace) -> list[Claim]:
    ends = {"deeper": trace.deep, "shallower": trace.shallow}
    reached = "theorem 4.1 (Tirer & Bruna 2022): zero; the settings' margin for what the gradient leaves"
    return [
        _value_claim("linear", settings, trace),
        *[
            Claim(
                name=f"linear, {name} level: {title}",
                measured=level[key][-1],
                tolerance=settings.distance,
                basis=reached,
            )
            for name, level in ends.items()
            for key, title in _TITLES.items()
            if key != "nc3"
        ],
        *[
            Claim(
                name=f"linear, {name} level: NC3 of {weights}",
                measured=level["nc3"][-1],
                tolerance=settings.distance,
                basis=reached,
            )
            for (name, level), weights in zip(ends.items(), ("the last weight", "the product of weights"), strict=True)
        ],
        Claim(
            name="linear: NC1 of both levels falls at the same rate (ratio of slopes, deeper over shallower)",
            measured=trace.slope(trace.deep) / trace.slope(trace.shallow),
            expected=1.0,
            tolerance=0.2,
            basis="'similar slopes': the same modes decay in both; a fifth for the fit",
        ),
        Claim(
            name="linear: VCI of both levels is the same at the start (difference)",
            measured=trace.deep["vci"][0] - trace.shallow["vci"][0],
            tolerance=1e-9,
            basis="invariance under invertible linear maps; rounding",
            amends="appendix D says that NC1 of H and of W₁H are equal if no column of H lies in the null space of W₁. "
            "At the start W₁ is invertible, yet they differ: "
            f"{trace.shallow['nc1'][0]:.3g} against {trace.deep['nc1'][0]:.3g}. The step replaces the pseudo-inverse "
            "of W₁Σ_BW₁ᵀ by W₁⁻ᵀΣ_B†W₁⁻¹, which needs Σ_B of full rank, and its rank is at most K − 1. What is "
            "invariant is VCI, where Σ_T takes the place of Σ_W.",
        ),
    ]


def _relu_claims(settings: Settings, trace: Trace) -> list[Claim]:
    middle = len(trace.steps) // 10
    ahead = [a - b for a, b in zip(trace.shallow["nc1"][middle:], trace.deep["nc1"][middle:], strict=True)]
    return [
        _value_claim("ReLU", settings, trace),
        *[
            Claim(
                name=f"ReLU, deeper level: {title}",
                measured=trace.deep[key][-1],
                tolerance=settings.distance,
                basis="theorem 4.2 (Tirer & Bruna 2022): zero; the settings' margin",
            )
            for key, title in _TITLES.items()
        ],
        Claim(
            name="ReLU: the assumption of the theorem, equal nuclear norms before and after (relative gap)",
            measured=trace.nuclear_gap,
            tolerance=10 * settings.distance,
            basis="first order in the distance from the minimum, theirs is second order: ten times the margin",
        ),
        Claim(
            name="ReLU: after the first tenth of the steps the deeper level has the smaller NC1 throughout (smallest "
            "lead)",
            measured=smallest(ahead),
            comparison="at least",
            basis="the source's figure; order alone",
        ),
        Claim(
            name="ReLU: the deeper level collapses faster (ratio of slopes, deeper over shallower)",
            measured=trace.slope(trace.deep) / trace.slope(trace.shallow),
            expected=1.2,
            comparison="at least",
            basis="the source's figure, against 1 ± 0.2 without ReLU",
        ),
        Claim(
            name="ReLU, shallower level: no orthogonal frame (NC2)",
            measured=trace.shallow["nc2"][-1],
            expected=0.1,
            comparison="at least",
            basis="the source's figure; far above the margin",
        ),
    ]


def _value_claim(name: str, settings: Settings, trace: Trace) -> Claim:
    return Claim(
        name=f"{name}: the minimum has the value of the closed form (difference)",
        measured=trace.objective[-1] - minimal_value(settings),
        tolerance=1e-5,
        basis="roots of a polynomial of degree four; descent comes from above and is stopped",
    )


def draw(curves: Mapping[str, Any]) -> Figure:
    """Draw NC1, NC2 and NC3 of all levels."""
    drawn, axes = drawing.figure(6, rows=2)
    names = {"shallow": "shallow features", "before": "before ReLU", "deep": "deep features"}
    for row, name in enumerate(("linear", "ReLU")):
        for axis, (key, title) in zip(axes[3 * row :], _TITLES.items(), strict=False):
            named = {names[level]: values[key] for level, values in curves[name].items()}
            drawing.lines(axis, curves["steps"], named)
            drawing.label(axis, f"{title}: {name}", "step of gradient descent", key.upper(), logy=True)
    return drawn


EXPERIMENT = Experiment(
    name="extended_features",
    title="Extended unconstrained features",
    source="Tirer & Bruna 2022, Extended unconstrained features model for exploring deep neural collapse, "
    "arXiv:2202.08087",
    settings=Settings,
    run=run,
    draw=draw,
)
