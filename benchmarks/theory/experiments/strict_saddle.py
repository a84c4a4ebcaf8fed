"""Strict saddles: critical points of unconstrained features that are not global minima have negative curvature."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.theory.core import Claim, Experiment, Findings, drawing, largest, smallest
from benchmarks.theory.models.unconstrained_features import (
    Decay,
    LossName,
    UnconstrainedFeatures,
    make_loss,
    reach_minimum,
)

_LOSSES: tuple[LossName, ...] = get_args(LossName)


@dataclass(frozen=True)
class Settings:
    """Sizes and weight decay."""

    classes: int
    samples_per_class: int
    width: int
    decay: float
    trivial_decay: float
    gradient: float
    steps: int
    scale: float
    seed: int

    @property
    def push(self) -> float:
        """Spectral norm of the loss' gradient at zero logits, cross-entropy: √n / N."""
        return 1 / (self.classes * math.sqrt(self.samples_per_class))


def _model(settings: Settings, loss: LossName, decay: float) -> UnconstrainedFeatures:
    return UnconstrainedFeatures(
        [settings.samples_per_class] * settings.classes,
        settings.width,
        Decay(decay, decay, decay),
        make_loss(loss),
        bias=True,
        scale=settings.scale,
        seed=settings.seed,
    )


def _average_with(gradient: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    return gradient.index_copy(0, rows, (gradient[rows] + gradient[others]) / 2)


def _minimize_merged(settings: Settings, model: UnconstrainedFeatures) -> None:
    """Minimise with the same features and rows for the first two classes.

    By symmetry the gradient keeps them the same, but for rounding, which would grow: it is taken out.
    """
    first, second = ((model.labels == label).nonzero().flatten() for label in (0, 1))
    pairs = ((model.features, first, second), (model.classifier, torch.tensor([0]), torch.tensor([1])))
    handles = []
    for parameter, own, other in pairs:
        with torch.no_grad():
            parameter[other] = parameter[own]
        average = functools.partial(_average_with, rows=torch.cat([own, other]), others=torch.cat([other, own]))
        handles.append(parameter.register_hook(average))
    reach_minimum(model, settings.steps, settings.gradient)
    for handle in handles:
        handle.remove()


def critical_points(settings: Settings, loss: LossName, decay: float) -> dict[str, UnconstrainedFeatures]:
    """Find the zero solution (bias at its optimum), the best with two classes merged, and the global minimum."""
    points = {name: _model(settings, loss, decay) for name in ("zero", "two classes merged", "minimum")}
    with torch.no_grad():
        points["zero"].features.zero_()
        points["zero"].classifier.zero_()
    _minimize_merged(settings, points["two classes merged"])
    for name in ("zero", "minimum"):
        reach_minimum(points[name], settings.steps, settings.gradient)
    return points


def run(settings: Settings) -> Findings:
    """Look at the spectra."""
    claims, spectra = [], {}
    for loss in _LOSSES:
        points = critical_points(settings, loss, settings.decay)
        values = {name: torch.linalg.eigvalsh(model.hessian()) for name, model in points.items()}
        spectra[loss] = {name: spectrum.tolist() for name, spectrum in values.items()}
        claims += _claims(settings, loss, points, {name: float(spectrum[0]) for name, spectrum in values.items()})
    trivial = critical_points(settings, "cross-entropy", settings.trivial_decay)["zero"]
    claims.append(
        Claim(
            name=f"cross-entropy, λ = {settings.trivial_decay} above the threshold: zero is no saddle (smallest "
            "curvature)",
            measured=float(torch.linalg.eigvalsh(trivial.hessian())[0]),
            expected=settings.trivial_decay - settings.push,
            tolerance=1e-9,
            basis="λ − √n/N, exact; rounding",
        )
    )
    return Findings(
        claims=claims,
        curves={"spectra": spectra},
        description=(
            "Smallest eigenvalues of the Hessian at three critical points for five losses: negative at zero and where "
            "two classes are merged, none negative at the global minimum."
        ),
    )


def _claims(
    settings: Settings, loss: LossName, points: Mapping[str, UnconstrainedFeatures], curvature: Mapping[str, float]
) -> list[Claim]:
    saddles = [name for name in points if name != "minimum"]
    claims = [
        Claim(
            name=f"{loss}: all three are critical points (largest gradient)",
            measured=largest(model.gradient_norm for model in points.values()),
            tolerance=settings.gradient,
            basis="stopping criterion",
        ),
        Claim(
            name=f"{loss}: the saddles lie above the minimum (smallest gap of the objective)",
            measured=smallest(points[name]().item() for name in saddles) - points["minimum"]().item(),
            expected=1e-3,
            comparison="at least",
            basis="far above rounding: the saddles are not global",
        ),
        Claim(
            name=f"{loss}: negative curvature at both saddles (largest of the smallest eigenvalues)",
            measured=largest(curvature[name] for name in saddles),
            expected=-1e-3,
            comparison="at most",
            basis="theorem (strict saddle); far above rounding",
        ),
        Claim(
            name=f"{loss}: none at the global minimum (smallest eigenvalue)",
            measured=curvature["minimum"],
            tolerance=1e-7,
            basis="rotations are flat: zero up to the gradient that is left",
        ),
    ]
    if loss == "cross-entropy":
        claims.append(
            Claim(
                name="cross-entropy: the curvature at zero is λ − √n/N",
                measured=curvature["zero"],
                expected=settings.decay - settings.push,
                tolerance=1e-9,
                basis="λ − |∇g(0)|, exact; rounding",
            )
        )
    return claims


def draw(curves: Mapping[str, Any]) -> Figure:
    """Draw the lower ends of the spectra."""
    losses = list(curves["spectra"])
    drawn, axes = drawing.figure(len(losses), rows=2)
    for axis, loss in zip(axes, losses, strict=True):
        named = {name: values[:20] for name, values in curves["spectra"][loss].items()}
        drawing.lines(axis, list(range(1, 21)), named, marker="o", markersize=3)
        axis.axhline(0.0, color="black", linewidth=0.8)
        drawing.label(axis, loss, "index", "eigenvalue of the Hessian")
    return drawn


EXPERIMENT = Experiment(
    name="strict_saddle",
    title="Unconstrained features: strict saddles",
    source="Zhu et al. 2021, arXiv:2105.02375; Zhou et al. 2022, arXiv:2203.01238 and arXiv:2210.02192",
    settings=Settings,
    run=run,
    draw=draw,
)
