"""Rescaled MSE over angle and length: contours, and how steep the loss is in each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.theory.core import Claim, Experiment, Findings, drawing
from nc_finetune.losses import RescaledMSELoss

_ENTROPY_REACH = 10.0  # cross-entropy has no minimum: this length makes the loss negligible


@dataclass(frozen=True)
class Settings:
    """What is drawn, and how finely."""

    rescalings: tuple[tuple[float, float], ...]
    classes: int
    angles: int
    lengths: int
    reach: float


@dataclass(frozen=True)
class Landscape:
    """A loss over angle Θ from the right direction and length s of the output."""

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]  # of each sample
    classes: int
    reach: float

    def value(self, angle: Tensor, length: Tensor) -> Tensor:
        """Evaluate at outputs ``s (cos Θ e_1 + sin Θ e_2)`` of samples of the first class."""
        first, second = length * angle.cos(), length * angle.sin()
        rest = torch.zeros(len(angle), self.classes - 2, dtype=angle.dtype)
        logits = torch.cat([first.unsqueeze(1), second.unsqueeze(1), rest], dim=1)
        return self.loss(logits, torch.zeros(len(logits), dtype=torch.long))

    def grid(self, angles: int, lengths: int) -> tuple[Tensor, Tensor]:
        """Return all pairs of angles up to 180° and lengths up to the reach."""
        angle = torch.linspace(0, math.pi, angles, dtype=torch.float64)
        length = torch.linspace(self.reach / lengths, self.reach, lengths, dtype=torch.float64)
        pairs = torch.cartesian_prod(angle, length)
        return pairs[:, 0], pairs[:, 1]

    def steepness(self, angles: int, lengths: int) -> float:
        """Root mean square of ∂ℓ/∂Θ over that of ∂ℓ/∂s, over the grid."""
        angle, length = (part.clone().requires_grad_() for part in self.grid(angles, lengths))
        by_angle, by_length = torch.autograd.grad(self.value(angle, length).sum(), [angle, length])
        return float(by_angle.norm() / by_length.norm())

    def curvature_ratio(self, length: float) -> float:
        """Second derivative in Θ over that in s at Θ = 0 and a length."""

        def value(place: Tensor) -> Tensor:
            return self.value(place[:1], place[1:])[0]

        place = torch.tensor([0.0, length], dtype=torch.float64)
        hessian = torch.autograd.functional.hessian(value, place)  # type: ignore[no-untyped-call]
        return float(hessian[0, 0] / hessian[1, 1])


def rescaled(settings: Settings, alpha: float, target: float) -> Landscape:
    """Build the landscape of rescaled MSE."""
    name = "MSE" if alpha == target == 1 else "rescaled MSE"
    loss = RescaledMSELoss(alpha=alpha, target=target).sample_losses
    return Landscape(f"{name}, α = {alpha:g}, M = {target:g}", loss, settings.classes, settings.reach * target)


def run(settings: Settings) -> Findings:
    """Evaluate all landscapes."""
    squared = {(alpha, target): rescaled(settings, alpha, target) for alpha, target in settings.rescalings}
    entropy = Landscape("cross-entropy", torch.nn.CrossEntropyLoss(reduction="none"), settings.classes, _ENTROPY_REACH)
    size = (settings.angles, settings.lengths)
    steepness = {landscape.name: landscape.steepness(*size) for landscape in (*squared.values(), entropy)}
    return Findings(
        claims=[
            *_curvature_claims(squared),
            *_steepness_claims(steepness, {key: land.name for key, land in squared.items()}, entropy.name),
        ],
        curves={"contours": [_contour(landscape, *size) for landscape in (*squared.values(), entropy)]},
        notes=[
            f"{name}: {ratio:.2f} times as steep in the angle as in the length" for name, ratio in steepness.items()
        ],
        description=(
            "Contours of the loss over the angle from the right direction and the length of the output. Plain MSE is a "
            "round bowl; with M = 5 the bowl is narrow in the angle, with α = 5 it is narrow in the length near its "
            "bottom and steep towards large angles; cross-entropy falls with the length once the angle is small."
        ),
    )


def _contour(landscape: Landscape, angles: int, lengths: int) -> dict[str, Any]:
    angle, length = landscape.grid(angles, lengths)
    values = landscape.value(angle, length).view(angles, lengths)
    return {
        "name": landscape.name,
        "angles": [math.degrees(value) for value in angle.view(angles, lengths)[:, 0].tolist()],
        "lengths": length.view(angles, lengths)[0].tolist(),
        "values": values.tolist(),
    }


def _curvature_claims(squared: Mapping[tuple[float, float], Landscape]) -> list[Claim]:
    amends = (
        "the slides call rescaled MSE steeper in the angle than in the length, like cross-entropy. At the minimum the "
        "ratio of curvatures is M²/α: larger M makes it so, larger α does the contrary. What α = 5 makes steeper is "
        "the way from large angles (below)."
    )
    return [
        Claim(
            name=f"{landscape.name}: curvature in the angle over that in the length at the minimum is M²/α",
            measured=landscape.curvature_ratio(target),
            expected=target**2 / alpha,
            tolerance=1e-6,
            basis="by hand: 2M² and 2α; rounding",
            amends=amends if alpha > target**2 else None,
        )
        for (alpha, target), landscape in squared.items()
    ]


def _steepness_claims(
    steepness: Mapping[str, float], names: Mapping[tuple[float, float], str], entropy: str
) -> list[Claim]:
    plain = names[1.0, 1.0]
    picture = "the slides' picture; order alone"
    return [
        *[
            Claim(
                name=f"{name}: steeper in the angle than in the length on average (ratio of root mean squares, in "
                "multiples of that of plain MSE)",
                measured=steepness[name] / steepness[plain],
                expected=1.0,
                comparison="at least",
                basis=picture,
                amends=None
                if steepness[name] >= 1
                else "the slides call it steeper in the angle than in the length. With these numbers it is so against "
                f"plain MSE alone: the ratio itself is {steepness[name]:.2f}, plain MSE's {steepness[plain]:.2f}.",
            )
            for name in (*(name for name in names.values() if name != plain), entropy)
        ],
        Claim(
            name=f"{entropy}: steeper in the angle than in the length on average (ratio of root mean squares)",
            measured=steepness[entropy],
            expected=1.0,
            comparison="at least",
            basis=picture,
        ),
    ]


def draw(curves: Mapping[str, Any]) -> Figure:
    """Draw the contours."""
    drawn, axes = drawing.figure(len(curves["contours"]), rows=2)
    for axis, contour in zip(axes, curves["contours"], strict=True):
        values = [list(row) for row in zip(*contour["values"], strict=True)]
        highest = max(max(row) for row in values)
        levels = [highest * (step / 14) ** 2 for step in range(1, 14)]
        lines = axis.contour(contour["angles"], contour["lengths"], values, levels=levels, cmap="viridis")
        axis.clabel(lines, fontsize=7, fmt="%.2g")
        drawing.label(axis, contour["name"], "angle Θ (degrees)", "length s of the output")
    return drawn


EXPERIMENT = Experiment(
    name="loss_landscape",
    title="Rescaled MSE over angle and length",
    source="Zhou et al. 2022, On the optimization landscape of neural collapse under MSE loss, arXiv:2203.01238",
    settings=Settings,
    run=run,
    draw=draw,
)
