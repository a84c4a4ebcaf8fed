"""Overcomplete tensor decomposition: local maxima of |Aᵀq|₄⁴ on the sphere are the columns of ±A."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.theory.core import Claim, Experiment, Findings, drawing
from benchmarks.theory.models.tight_frames import coherence, random_tight_frame, tightness_error, unbiased_bases
from nc_finetune.errors import missing_extra

try:
    import pymanopt
    from pymanopt.manifolds import Oblique
    from pymanopt.optimizers import TrustRegions
except ImportError as error:
    raise missing_extra("pymanopt", "theory", "the theory bench") from error

_AMENDMENT = (
    "every local solution is near a column, but within 1e-3 only where columns are critical points themselves, as in "
    "unbiased bases. In a random unit-norm tight frame the cubes of the coherences displace them by some hundredths: "
    "what holds is the bound by Newton's step."
)


@dataclass(frozen=True)
class Settings:
    """Sizes and numbers of starts."""

    dimension: int
    ratios: tuple[int, ...]
    starts: int
    near: float
    random_ratios: tuple[int, ...]
    dictionary_dimension: int
    dictionary_ratio: int
    density: float
    observations: int
    iterations: int
    seed: int


def random_starts(dimension: int, number: int, generator: torch.Generator) -> Tensor:
    """Draw unit vectors as columns."""
    gaussian = torch.randn(dimension, number, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(gaussian, dim=0)


def power_method(data: Tensor, starts: Tensor, iterations: int) -> Tensor:
    """Iterate ``q <- Y (Yᵀq)³`` on the sphere: ascent, since the objective is convex."""
    points = starts
    for _ in range(iterations):
        moved = torch.nn.functional.normalize(data @ (data.T @ points) ** 3, dim=0)
        if float((moved - points).norm(dim=0).max()) < 1e-12:
            return moved
        points = moved
    return points


def trust_regions(data: Tensor, starts: Tensor, iterations: int) -> Tensor:
    """Maximise by Riemannian trust regions, all starts at once."""
    manifold = Oblique(*starts.shape)

    @pymanopt.function.pytorch(manifold)
    def cost(points: Tensor) -> Tensor:
        return -(data.T @ points).pow(4).sum() / 4

    optimizer = TrustRegions(verbosity=0, max_iterations=iterations, min_gradient_norm=1e-9, max_time=float("inf"))
    result = optimizer.run(pymanopt.Problem(manifold, cost), initial_point=starts.numpy())
    return torch.from_numpy(result.point)


def nearest_column(frame: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return which column of ±A is nearest to each point, and how far it is."""
    products = frame.T @ points
    index = products.abs().argmax(dim=0)
    signs = products.gather(0, index.unsqueeze(0)).sign()
    return index, (points - signs * frame[:, index]).norm(dim=0)


def spherical_hessian(data: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradient and Hessian of −|Yᵀq|₄⁴ / 4 in the tangent space at a point of the sphere."""
    products = data.T @ point
    gradient = -(data @ products**3)
    tangent = torch.linalg.svd(point.unsqueeze(0))[2][1:].T
    hessian = -3 * (data * products**2) @ data.T
    inside = tangent.T @ hessian @ tangent - (gradient @ point) * torch.eye(tangent.shape[1], dtype=data.dtype)
    return tangent.T @ gradient, inside


def newton_step(data: Tensor, point: Tensor) -> float:
    """Length of Newton's step from a point: a solution lies within twice of it (Kantorovich)."""
    gradient, hessian = spherical_hessian(data, point)
    return float(torch.linalg.solve(hessian, gradient).norm())


def run(settings: Settings) -> Findings:
    """Decompose with several frames, then learn a dictionary."""
    generator = torch.Generator().manual_seed(settings.seed)
    frames = {
        f"unbiased bases, m/n = {ratio}": unbiased_bases(settings.dimension, ratio, generator)
        for ratio in settings.ratios
    }
    randoms = {
        f"random frame, m/n = {ratio}": random_tight_frame(settings.dimension, ratio * settings.dimension, generator)
        for ratio in settings.random_ratios
    }
    claims, distances = _saddle_claims(settings), {}
    for name, frame in (frames | randoms).items():
        starts = random_starts(settings.dimension, settings.starts, generator)
        ends = {
            "power method": power_method(frame, starts, settings.iterations),
            "trust regions": trust_regions(frame, starts, settings.iterations),
        }
        distances[name] = sorted(nearest_column(frame, ends["power method"])[1].clamp(min=1e-9).tolist())
        claims.append(_frame_claim(name, frame))
        claims += [
            _share_claim(settings, name, how, frame, points, exact=name in frames) for how, points in ends.items()
        ]
    learned, found = _dictionary(settings, generator)
    return Findings(
        claims=[*claims, *learned],
        curves={"distances": distances, "found": found},
        description=(
            "Left: distances of the local solutions from the nearest column, sorted, on a log scale: rounding for "
            "unbiased bases, hundredths for random tight frames. Right: columns of a dictionary found by repeated "
            "random starts, up to all of them."
        ),
    )


def _saddle_claims(settings: Settings) -> list[Claim]:
    basis = torch.eye(settings.dimension, dtype=torch.float64)
    between = (basis[0] + basis[1]) / math.sqrt(2)
    gradient, hessian = spherical_hessian(basis, between)
    exact = "by hand, for orthonormal columns; rounding"
    return [
        Claim(
            name="(a₁ + a₂)/√2 is a critical point (gradient)",
            measured=float(gradient.norm()),
            tolerance=1e-9,
            basis=exact,
        ),
        Claim(
            name="(a₁ + a₂)/√2 is a strict saddle (smallest curvature)",
            measured=float(torch.linalg.eigvalsh(hessian)[0]),
            expected=-1.0,
            tolerance=1e-9,
            basis=exact,
        ),
    ]


def _frame_claim(name: str, frame: Tensor) -> Claim:
    return Claim(
        name=f"{name} (coherence {coherence(frame):.3f}): unit-norm and tight (largest error)",
        measured=tightness_error(frame),
        tolerance=1e-9,
        basis="assumption of the theorem; rounding",
    )


def _share_claim(settings: Settings, name: str, how: str, frame: Tensor, points: Tensor, *, exact: bool) -> Claim:
    index, distance = nearest_column(frame, points)
    if exact:
        bound, text = torch.full_like(distance, settings.near), f"{settings.near:g}"
    else:
        steps = torch.tensor([newton_step(frame, column) for column in frame.T], dtype=torch.float64)
        bound, text = 2 * steps[index], f"twice Newton's step (at most {2 * float(steps.max()):.2g})"
    return Claim(
        name=f"{name}, {how}: share of random starts that end within {text} of a column",
        measured=float((distance <= bound).double().mean()),
        expected=1.0,
        comparison="at least",
        tolerance=0.01,
        basis="theorem (Qu et al. 2020): all; one in a hundred may end elsewhere with a coherence that is not tiny",
        amends=None if exact else _AMENDMENT,
    )


def _dictionary(settings: Settings, generator: torch.Generator) -> tuple[list[Claim], list[int]]:
    """Learn a dictionary from Y = AX with Bernoulli-Gaussian X."""
    size, theta = settings.dictionary_dimension, settings.density
    frame = unbiased_bases(size, settings.dictionary_ratio, generator)
    columns = frame.shape[1]
    shape = (columns, settings.observations)
    mask = torch.rand(*shape, generator=generator, dtype=torch.float64) < theta
    data = frame @ (mask * torch.randn(*shape, generator=generator, dtype=torch.float64))
    repetitions = math.ceil(columns * (math.log(columns) + 7))
    points = power_method(data, random_starts(size, repetitions, generator), settings.iterations)
    index, distance = nearest_column(frame, points)
    steps = torch.tensor([newton_step(data, column) for column in frame.T], dtype=torch.float64)
    inside = distance <= 2 * steps[index]
    seen: set[int] = set()
    found = [
        len(seen := seen | ({own} if good else set()))
        for own, good in zip(index.tolist(), inside.tolist(), strict=True)
    ]
    return [
        _expectation_claim(settings, frame, data, generator),
        Claim(
            name=f"dictionary, m/n = {settings.dictionary_ratio}: share of starts that end within twice Newton's step "
            f"of a column (at most {2 * float(steps.max()):.2g})",
            measured=float(inside.double().mean()),
            expected=1.0,
            comparison="at least",
            tolerance=0.05,
            basis="theorem (Qu et al. 2020) with the sampling error that Newton's step measures; one in twenty",
        ),
        Claim(
            name=f"dictionary: {repetitions} random starts find all {columns} columns (number found)",
            measured=float(len(seen)),
            expected=float(columns),
            basis="coupon collector: m (log m + 7) starts miss one with probability below 1e-3",
        ),
    ], found


def _expectation_claim(settings: Settings, frame: Tensor, data: Tensor, generator: torch.Generator) -> Claim:
    """Compare mean (yᵀq)⁴ with its expectation, in standard errors."""
    theta, ratio = settings.density, frame.shape[1] / frame.shape[0]
    points = random_starts(frame.shape[0], 20, generator)
    powers = (data.T @ points) ** 4
    expected = 3 * theta * (1 - theta) * ((frame.T @ points) ** 4).sum(dim=0) + 3 * theta**2 * ratio**2
    errors = powers.std(dim=0) / math.sqrt(len(powers))
    return Claim(
        name="dictionary: E|yᵀq|⁴ = 3θ(1 − θ)|Aᵀq|₄⁴ + 3θ²(m/n)² at 20 points (largest error, in standard errors)",
        measured=float(((powers.mean(dim=0) - expected) / errors).abs().max()),
        comparison="at most",
        tolerance=5.0,
        basis="moments of Bernoulli-Gaussian variables; five standard errors",
    )


def draw(curves: Mapping[str, Any]) -> Figure:
    """Draw distances, and columns found by repetition."""
    drawn, axes = drawing.figure(2, height=4.0)
    longest = max(len(values) for values in curves["distances"].values())
    shares = [(index + 1) / longest for index in range(longest)]
    drawing.lines(axes[0], shares, curves["distances"])
    drawing.label(axes[0], "Distance from the nearest column", "share of random starts", "distance", logy=True)
    axes[1].step(range(1, len(curves["found"]) + 1), curves["found"], color=drawing.COLOURS[0])
    drawing.label(axes[1], "Dictionary learning by repetition", "random starts", "columns found")
    return drawn


EXPERIMENT = Experiment(
    name="tensor_decomposition",
    title="Overcomplete tensor decomposition and dictionary learning",
    source="Qu et al. 2020, Analysis of the optimization landscapes for overcomplete representation learning, "
    "arXiv:1912.02427",
    settings=Settings,
    run=run,
    draw=draw,
)
