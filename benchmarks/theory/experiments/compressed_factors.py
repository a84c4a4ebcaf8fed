"""Compressed deep factorisation and completion: factors of width 2r̂ train as the wide ones do, and faster."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.theory.core import Claim, Experiment, Findings, drawing, largest
from benchmarks.theory.models.linear_network import (
    Initialization,
    descend,
    initial_weights,
    product,
    random_orthonormal,
)

_LOOK = 20


@dataclass(frozen=True)
class Settings:
    """Sizes and rates."""

    width: int
    rank: int
    guessed_rank: int
    depth: int
    factorization_scale: float
    completion_scale: float
    observed: float
    discrepancies: tuple[float, ...]
    rate: float
    factorization_steps: int
    completion_steps: int
    goal: float
    speedup: float
    initialization: Initialization
    seed: int


@dataclass
class Training:
    """Relative error of the product along one training, and what a step costs."""

    steps: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    seconds: float = 0.0
    products: list[Tensor] = field(default_factory=list)

    def steps_to(self, goal: float) -> float:
        """Steps until the error is below a goal; infinite if it never is."""
        return next(
            (float(step) for step, error in zip(self.steps, self.errors, strict=True) if error < goal), math.inf
        )

    def seconds_to(self, goal: float) -> float:
        """Processor time until then."""
        return self.steps_to(goal) * self.seconds / self.steps[-1]


def _problem(settings: Settings, observed: float) -> tuple[Tensor, Tensor]:
    """Return a matrix of the rank and the mask of what is seen of it."""
    generator = torch.Generator().manual_seed(settings.seed)
    left, right = (random_orthonormal(settings.width, settings.rank, generator) for _ in range(2))
    values = torch.linspace(2, 1, settings.rank, dtype=torch.float64)
    mask = torch.rand(settings.width, settings.width, generator=generator, dtype=torch.float64) < observed
    return left @ values.diag() @ right.T, mask.double()


def wide_factors(settings: Settings, scale: float) -> list[Tensor]:
    """Draw square factors."""
    generator = torch.Generator().manual_seed(settings.seed + 1)
    return initial_weights([settings.width] * (settings.depth + 1), scale, generator, settings.initialization)


def narrow_factors(settings: Settings, scale: float) -> list[Tensor]:
    """Draw factors that are as narrow as the compressed ones, from scratch."""
    generator = torch.Generator().manual_seed(settings.seed + 2)
    inner = [2 * settings.guessed_rank] * (settings.depth - 1)
    return initial_weights([settings.width, *inner, settings.width], scale, generator, settings.initialization)


def compressed_factors(wide: Sequence[Tensor], seen: Tensor, settings: Settings, scale: float) -> list[Tensor]:
    """Keep of wide factors the 2r̂ dimensions that learn: V_{1,1}^T, ``scale`` I a factor, U_{L,1}."""
    end_to_end = product(wide)
    left, _, right = torch.linalg.svd(seen)
    kept = settings.guessed_rank
    inner, _ = torch.linalg.qr(torch.cat([right[:kept].T, end_to_end.T @ left[:, :kept]], dim=1))
    cores = [scale * torch.eye(2 * kept, dtype=torch.float64) for _ in wide]
    return [inner.T.contiguous(), *cores, end_to_end @ inner / scale ** len(wide)]


def train(
    settings: Settings, factors: Sequence[Tensor], goal: Tensor, mask: Tensor, *, steps: int, outer: float = 1.0
) -> Training:
    """Descend on half the squared error of what is seen; the outer factors at ``outer`` times the rate."""
    rates = [settings.rate] * len(factors)
    rates[0] = rates[-1] = outer * settings.rate
    descent = descend(
        factors,
        lambda weights: 0.5 * (mask * (product(weights) - goal)).square().sum(),
        rates=rates,
        steps=steps,
    )
    training = Training()
    for step in range(steps + 1):
        start = time.process_time()
        _, weights = next(descent)
        training.seconds += time.process_time() - start
        if step % _LOOK == 0:
            training.steps.append(step)
            training.products.append(product(weights).clone())
            training.errors.append(float((training.products[-1] - goal).norm() / goal.norm()))
    return training


def run(settings: Settings) -> Findings:
    """Factorise and complete with wide, compressed and narrow factors."""
    goal, all_seen = _problem(settings, 1.0)
    scale, steps = settings.factorization_scale, settings.factorization_steps
    wide = wide_factors(settings, scale)
    compressed = compressed_factors(wide, goal, settings, scale)
    factorization = {
        "wide": train(settings, wide, goal, all_seen, steps=steps),
        "compressed": train(settings, compressed, goal, all_seen, steps=steps, outer=0.0),
        "narrow": train(settings, narrow_factors(settings, scale), goal, all_seen, steps=steps),
    }
    completion = _complete(settings)
    best = f"compressed, γ = {settings.discrepancies[-1]:g}"
    speed = {
        "factorisation": _speed(factorization["wide"], factorization["compressed"], settings.goal),
        "completion": _speed(completion["wide"], completion[best], settings.goal),
    }
    return Findings(
        claims=_factorization_claims(settings, factorization, speed) + _completion_claims(settings, completion, speed),
        curves={
            "factorization": {name: training.errors for name, training in factorization.items()},
            "factorization_steps": factorization["wide"].steps,
            "completion": {name: training.errors for name, training in completion.items()},
            "completion_steps": completion["wide"].steps,
        },
        notes=[
            f"{name}: the compressed factors reach a relative error of {settings.goal:g} in "
            f"{1 / ratio:.0%} of the processor time of the wide ones ({ratio:.1f} times as fast)"
            for name, ratio in speed.items()
        ]
        + [f"completion, {name}: relative error {training.errors[-1]:.2g}" for name, training in completion.items()],
        description=(
            "Relative error by step. Factorisation: wide and compressed factors fall together, narrow ones later. "
            "Completion: the compressed factors fall as the wide ones do only if their outer factors learn; with "
            "γ = 0 they stall, and narrow factors are late again."
        ),
    )


def _complete(settings: Settings) -> dict[str, Training]:
    goal, mask = _problem(settings, settings.observed)
    scale, steps = settings.completion_scale, settings.completion_steps
    wide = wide_factors(settings, scale)
    compressed = compressed_factors(wide, mask * goal, settings, scale)
    trained = {"wide": train(settings, wide, goal, mask, steps=steps)}
    for gamma in settings.discrepancies:
        trained[f"compressed, γ = {gamma:g}"] = train(settings, compressed, goal, mask, steps=steps, outer=gamma)
    trained["narrow"] = train(settings, narrow_factors(settings, scale), goal, mask, steps=steps)
    return trained


def _speed(wide: Training, compressed: Training, goal: float) -> float:
    """Compare processor times to the goal; ``nan`` if either never arrives."""
    ratio = wide.seconds_to(goal) / compressed.seconds_to(goal)
    return ratio if math.isfinite(ratio) and ratio > 0 else math.nan


def _factorization_claims(
    settings: Settings, trained: Mapping[str, Training], speed: Mapping[str, float]
) -> list[Claim]:
    wide, compressed = trained["wide"], trained["compressed"]
    rho, gaps = settings.factorization_scale, []
    for step in range(wide.steps[-1] + 1):
        if step % _LOOK == 0:
            gap = (wide.products[step // _LOOK] - compressed.products[step // _LOOK]).norm()
            gaps.append(abs(float(gap) - rho**settings.depth * math.sqrt(settings.width - 2 * settings.guessed_rank)))
        rho *= 1 - settings.rate * rho ** (2 * settings.depth - 2)
    return [
        Claim(
            name="factorisation: wide and compressed products differ by ρ^L(t) √(d − 2r̂) throughout (largest error)",
            measured=largest(gaps),
            tolerance=1e-8,
            basis="theorem (Yaras et al. 2023): exact, ρ ← (1 − ηρ^(2L−2)) ρ; room for rounding",
        ),
        Claim(
            name="factorisation: compressed as good as wide (final relative error, difference)",
            measured=compressed.errors[-1] - wide.errors[-1],
            comparison="at most",
            basis="the wide product carries ρ^L in the other directions, the compressed one nothing",
        ),
        Claim(
            name="factorisation: compressed faster (processor time to the goal, wide over compressed)",
            measured=speed["factorisation"],
            expected=settings.speedup,
            comparison="at least",
            basis="order alone; the inner products cost (2r̂)³ instead of d³",
        ),
        _narrow_claim("factorisation", trained["narrow"], compressed, settings.goal),
    ]


def _narrow_claim(task: str, narrow: Training, compressed: Training, goal: float) -> Claim:
    return Claim(
        name=f"{task}: narrow factors of the same width need more steps (narrow over compressed)",
        measured=narrow.steps_to(goal) / compressed.steps_to(goal)
        if math.isfinite(compressed.steps_to(goal))
        else math.nan,
        expected=1.0,
        comparison="at least",
        basis="order alone; infinite where the narrow ones do not arrive",
    )


def _completion_claims(settings: Settings, trained: Mapping[str, Training], speed: Mapping[str, float]) -> list[Claim]:
    learning = f"compressed, γ = {settings.discrepancies[-1]:g}"
    fixed = f"compressed, γ = {settings.discrepancies[0]:g}"
    errors = [trained[f"compressed, γ = {gamma:g}"].errors[-1] for gamma in settings.discrepancies]
    return [
        *[
            Claim(
                name=f"completion: {name} recovers the matrix (relative error)",
                measured=trained[name].errors[-1],
                tolerance=settings.goal,
                basis="what counts as recovered, from the settings",
            )
            for name in ("wide", learning)
        ],
        Claim(
            name="completion: with fixed outer factors (γ = 0) the compressed ones do not (relative error)",
            measured=trained[fixed].errors[-1],
            expected=10 * settings.goal,
            comparison="at least",
            basis="singular vectors of Ω ⊙ Φ are not those of Φ: ten times the goal is no recovery",
        ),
        Claim(
            name="completion: the larger γ the smaller the error after these steps (largest rise)",
            measured=largest(after - before for before, after in itertools.pairwise(errors)),
            comparison="at most",
            basis="order alone, for γ up to 1",
        ),
        Claim(
            name="completion: compressed faster (processor time to the goal, wide over compressed)",
            measured=speed["completion"],
            expected=settings.speedup,
            comparison="at least",
            basis="order alone; O(Ld²) products instead of O(Ld³)",
        ),
        _narrow_claim("completion", trained["narrow"], trained[learning], settings.goal),
    ]


def draw(curves: Mapping[str, Any]) -> Figure:
    """Draw the errors of both tasks."""
    drawn, axes = drawing.figure(2, height=4.0)
    for axis, task in zip(axes, ("factorization", "completion"), strict=True):
        drawing.lines(axis, curves[f"{task}_steps"], curves[task])
        title = "Factorisation" if task == "factorization" else "Completion"
        drawing.label(axis, title, "step of gradient descent", "relative error ‖W − Φ‖ / ‖Φ‖", logy=True)
    return drawn


EXPERIMENT = Experiment(
    name="compressed_factors",
    title="Compressed deep factorisation and completion",
    source="Yaras et al. 2023, The law of parsimony in gradient descent for learning deep linear networks, "
    "arXiv:2306.01154",
    settings=Settings,
    run=run,
    draw=draw,
)
