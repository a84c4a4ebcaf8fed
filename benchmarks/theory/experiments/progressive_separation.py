"""Progressive separation: within-class variability falls by the same factor from layer to layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.theory.core import Claim, Experiment, Findings, drawing, largest, smallest
from benchmarks.theory.models.linear_network import (
    Activation,
    Initialization,
    descend,
    features,
    initial_weights,
    random_orthonormal,
)
from nc_finetune.functional import separation_law, trace_ratio

_THEOREM = "theorem (Wang et al. 2023)"


@dataclass(frozen=True)
class Settings:
    """Sizes and scales."""

    classes: int
    samples_per_class: int
    depth: int
    scales: tuple[float, ...]
    relu_scales: tuple[float, ...]
    reference_scale: float
    initialization: Initialization
    rate: float
    loss: float
    steps: int
    relu_steps: int
    seed: int

    @property
    def width(self) -> int:
        """d = N: the data matrix is square."""
        return self.classes * self.samples_per_class


@dataclass(frozen=True)
class Trained:
    """A network at the end of its training."""

    scale: float
    loss: float
    escape: int  # steps until half of the loss is gone
    weights: list[Tensor]
    separation: Tensor  # D_0, ..., D_{L-1}: the last layer's is zero at the optimum

    @property
    def worst_ratio(self) -> float:
        """Largest D_{l+1} / D_l up to the last hidden layer."""
        return float((self.separation[1:] / self.separation[:-1]).max())

    @property
    def slope(self) -> float:
        """Decay of log D_l a layer."""
        return float(separation_law(self.separation).slope)

    @property
    def straightness(self) -> float:
        """R² of the line through log D_l."""
        return float(separation_law(self.separation).r_squared)


def train(
    settings: Settings, scale: float, initialization: Initialization, activation: Activation | None = None
) -> Trained:
    """Train until the loss is reached or the steps are used up."""
    generator = torch.Generator().manual_seed(settings.seed)
    inputs = random_orthonormal(settings.width, settings.width, generator)
    labels = torch.arange(settings.classes).repeat_interleave(settings.samples_per_class)
    targets = torch.eye(settings.classes, dtype=torch.float64)[:, labels]
    widths = [settings.width] * settings.depth + [settings.classes]
    descent = descend(
        initial_weights(widths, scale, generator, initialization),
        lambda weights: 0.5 * (features(weights, inputs, activation)[-1] - targets).square().sum(),
        rates=settings.rate,
        steps=settings.relu_steps if activation else settings.steps,
    )
    losses, weights = list[float](), list[Tensor]()
    for loss, weights in descent:  # noqa: B007
        losses.append(loss)
        if loss < settings.loss:
            break
    escape = next((step for step, loss in enumerate(losses) if loss < losses[0] / 2), len(losses))
    layers = features(weights, inputs, activation)[:-1]
    separation = torch.stack([trace_ratio(layer.T, labels, settings.classes) for layer in layers])
    return Trained(scale, losses[-1], escape, weights, separation)


def _log_slope(scales: list[float], values: list[float]) -> float:
    """Exponent p of value ~ scale^p, by least squares."""
    x, y = torch.tensor(scales).double().log(), torch.tensor(values).double().log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def run(settings: Settings) -> Findings:
    """Train deep linear networks from several scales and initialisations, and ReLU networks."""
    first = settings.initialization
    linear = [train(settings, scale, first) for scale in settings.scales]
    relu = [train(settings, scale, "orthogonal", torch.relu) for scale in settings.relu_scales]
    others = {kind: train(settings, settings.reference_scale, kind) for kind in ("normal", "uniform")}  # type: ignore[arg-type]
    reference = train(settings, settings.reference_scale, first)
    return Findings(
        claims=[
            *_conditions(settings, linear),
            *_law(settings, linear),
            *_elsewhere(relu, others, reference),
        ],
        curves={
            "linear": {f"ε = {net.scale}": net.separation.tolist() for net in linear},
            "relu": {f"ε = {net.scale}": net.separation.tolist() for net in relu},
            "initializations": {
                name: net.separation.tolist() for name, net in {"orthogonal": reference, **others}.items()
            },
            "scales": [net.scale for net in linear],
            "steps": [net.escape for net in linear],
        },
        description=(
            "The trace ratio D by layer on a log scale falls on straight lines: steeper for a smaller scale of the "
            "initialisation, in linear networks and nearly so in ReLU networks, and alike for normal and uniform "
            "initialisation. Right: the smaller the scale, the more steps it takes to leave the start."
        ),
    )


def _conditions(settings: Settings, trained: list[Trained]) -> list[Claim]:
    """Check what the theorem asks of the trained network."""
    spectrum, balance, excess = [], [], []
    for net in trained:
        hidden = net.weights[:-1]
        kept = settings.width - 2 * settings.classes
        changes = [(torch.linalg.svdvals(weight) - net.scale).abs().sort().values for weight in hidden]
        spectrum.append(largest(float(change[:kept].max()) for change in changes))
        gaps = [
            float(torch.linalg.matrix_norm(upper.T @ upper - lower @ lower.T))
            for lower, upper in zip(net.weights[:-1], net.weights[1:], strict=True)
        ]
        balance.append(largest(gaps[:-1]))
        excess.append(gaps[-1] - net.scale**2 * math.sqrt(settings.width - settings.classes))
    return [
        Claim(
            name="condition: the loss is at its global minimum (largest)",
            measured=largest(net.loss for net in trained),
            tolerance=settings.loss,
            basis="stopping criterion",
        ),
        Claim(
            name="condition: d − 2K singular values of every hidden weight are ε (largest change)",
            measured=largest(spectrum),
            tolerance=1e-8,
            basis="law of parsimony: exact; room for rounding",
        ),
        Claim(
            name="condition: hidden weights are balanced (largest norm of W_{l+1}ᵀW_{l+1} − W_lW_lᵀ)",
            measured=largest(balance),
            tolerance=settings.rate,
            basis="zero for gradient flow; steps of size η leave a drift of order η",
        ),
        Claim(
            name="condition: last two weights are balanced up to ε²√(d − K) (largest excess)",
            measured=largest(excess),
            comparison="at most",
            tolerance=settings.rate,
            basis="as above",
        ),
    ]


def _law(settings: Settings, trained: list[Trained]) -> list[Claim]:
    bound = 2 * (math.sqrt(settings.classes) + 1)
    scales = [net.scale for net in trained]
    return [
        *[
            Claim(
                name=f"ε = {net.scale}: D_{{l+1}}/D_l ≤ 2(√K + 1)ε² for l = 0, …, L − 2 (largest ratio)",
                measured=net.worst_ratio,
                expected=bound * net.scale**2,
                comparison="at most",
                basis=_THEOREM,
            )
            for net in trained
        ],
        Claim(
            name="log D_l falls linearly with depth (smallest R²)",
            measured=smallest(net.straightness for net in trained),
            expected=1.0,
            tolerance=0.01,
            comparison="at least",
            basis="the ratio is the same in every layer up to corrections of order ε²: 1 % of the variance",
        ),
        Claim(
            name="the decay ratio goes like ε^p",
            measured=_log_slope(scales, [math.exp(net.slope) for net in trained]),
            expected=2.0,
            tolerance=0.1,
            basis="p = 2 in the theorem; the learned singular values depend on ε only through corrections",
        ),
        Claim(
            name="trade-off: the steps to half of the loss go like ε^q",
            measured=_log_slope(scales, [float(net.escape) for net in trained]),
            expected=-(settings.depth - 2.0),
            tolerance=0.5,
            basis="time to leave the saddle at zero: dσ/dt ~ σ^(L−1), hence q = 2 − L for small ε",
        ),
    ]


def _elsewhere(relu: list[Trained], others: Mapping[str, Trained], reference: Trained) -> list[Claim]:
    picture = "the slides' picture shows a line; 5 % of the variance may be off it"
    return [
        Claim(
            name="ReLU networks: log D_l falls linearly with depth too (smallest R²)",
            measured=smallest(net.straightness for net in relu),
            expected=0.95,
            comparison="at least",
            basis=picture,
        ),
        Claim(
            name="ReLU networks: a smaller ε decays faster (smallest gain in slope from one ε to the next)",
            measured=smallest(big.slope - small.slope for small, big in itertools.pairwise(relu)),
            comparison="at least",
            basis="order alone",
        ),
        *[
            Claim(
                name=f"{name} initialisation: log D_l falls linearly too (R²)",
                measured=net.straightness,
                expected=0.95,
                comparison="at least",
                basis=picture,
            )
            for name, net in others.items()
        ],
        Claim(
            name="other initialisations decay as fast as the orthogonal one (largest relative difference in slope)",
            measured=largest(abs(net.slope / reference.slope - 1) for net in others.values()),
            tolerance=0.1,
            basis="columns of the same length on average; the theorem covers orthogonal ones alone",
        ),
    ]


def draw(curves: Mapping[str, Any]) -> Figure:
    """Draw D by layer, and the price of a small scale."""
    drawn, axes = drawing.figure(4, rows=2)
    panels = {"linear": "Linear networks", "relu": "ReLU networks", "initializations": "Initialisations, linear"}
    for axis, (name, title) in zip(axes, panels.items(), strict=False):
        depth = list(range(max(len(values) for values in curves[name].values())))
        drawing.lines(axis, depth, curves[name], marker="o", markersize=4)
        drawing.label(axis, title, "layer", "trace ratio D", logy=True)
        axis.set_xticks(depth)
    axes[3].plot(curves["scales"], curves["steps"], color=drawing.COLOURS[0], marker="o")
    drawing.label(axes[3], "Steps to half of the loss", "scale ε of the initialisation", "steps", logx=True, logy=True)
    return drawn


EXPERIMENT = Experiment(
    name="progressive_separation",
    title="Progressive separation along depth",
    source="Wang et al. 2023, Understanding deep representation learning via layerwise feature compression and "
    "discrimination, arXiv:2311.02960; He & Su 2023, 10.1073/pnas.2221704120",
    settings=Settings,
    run=run,
    draw=draw,
)
