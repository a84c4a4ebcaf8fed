"""MSE on unconstrained features: minimal values, the trivial-minimiser threshold, D < K - 1, the error bound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.theory.core import Claim, Experiment, Findings, drawing, largest, smallest
from benchmarks.theory.models.unconstrained_features import (
    Decay,
    LossName,
    Optimizer,
    UnconstrainedFeatures,
    make_loss,
    minimize,
    reach_minimum,
)

_QUADRATIC = "the objective is flat at its minimum: the gap is of the order of the squared gradient over λ"


@dataclass(frozen=True)
class Settings:
    """Sizes and weight decay."""

    classes: int
    samples_per_class: int
    widths: tuple[int, ...]
    narrow: tuple[tuple[int, int], ...]
    decay: float
    thresholds: tuple[float, ...]
    imbalanced: tuple[int, ...]
    imbalanced_decay: float
    plane_decay: float
    gradient: float
    steps: int
    scale: float
    seed: int


def minimal_value(counts: Sequence[int], width: int, decay: float, *, bias: bool) -> float:
    """Return the smallest value of 1/(2N) |WH + b1ᵀ − Y|² + λ/2 (|W|² + |H|²), b free of decay.

    The decay of both factors is λ times the nuclear norm of their product: each singular value s of Y (of the centred
    Y with a bias; balanced then) shrinks to s − Nλ, or to zero, and only the D largest can be kept.
    """
    total = sum(counts)
    values = sorted((math.sqrt(count) for count in counts), reverse=True)
    if bias:
        values = values[1:]
    kept = [max(value - total * decay, 0.0) if index < width else 0.0 for index, value in enumerate(values)]
    return sum((value - own) ** 2 / (2 * total) + decay * own for value, own in zip(values, kept, strict=True))


def _minimum(
    settings: Settings,
    counts: Sequence[int],
    width: int,
    decay: float,
    *,
    bias: bool,
    loss: LossName = "MSE",
    bias_decay: float = 0.0,
) -> UnconstrainedFeatures:
    model = UnconstrainedFeatures(
        counts,
        width,
        Decay(decay, decay, bias_decay),
        make_loss(loss),
        bias=bias,
        scale=settings.scale,
        seed=settings.seed,
    )
    reach_minimum(model, settings.steps, settings.gradient)
    return model


def run(settings: Settings) -> Findings:
    """Minimise and compare with the closed forms."""
    (without, values), (biased, biased_values) = (_threshold_claims(settings, bias=bias) for bias in (False, True))
    plane = _plane(settings)
    bound, ratios = _error_bound(settings)
    return Findings(
        claims=[
            *_value_claims(settings),
            *without,
            *biased,
            *_projection_claims(settings),
            *_plane_claims(plane),
            *_bias_claims(settings),
            *_imbalance_claims(settings),
            bound,
        ],
        curves={
            "classes": settings.classes,
            "sweep": {"c": list(settings.thresholds), "without bias": values, "with bias": biased_values},
            "plane": {loss: model.means.tolist() for loss, model in plane.items()},
            "error_bound": ratios,
        },
        description=(
            "The minimal value follows c − c²/2 (times 1 − 1/K with a bias) up to c = 1 and is constant above, where "
            "all factors vanish. In a "
            "plane, ten class means of MSE have different lengths and angles, those of cross-entropy are the corners "
            "of a polygon. Distance to the minimum over norm of the gradient settles at one over the smallest "
            "curvature."
        ),
    )


def _case(bias: bool) -> str:
    return "with bias" if bias else "without bias"


def _value_claims(settings: Settings) -> list[Claim]:
    """Compare minimal values over widths."""
    counts = [settings.samples_per_class] * settings.classes
    gaps = {
        (bias, width): _minimum(settings, counts, width, settings.decay, bias=bias)().item()
        - minimal_value(counts, width, settings.decay, bias=bias)
        for bias in (True, False)
        for width in settings.widths
    }
    closed = "singular values of Y, shrunk (Tirer & Bruna 2022, theorems 3.1 and 3.2; Zhou et al. 2022)"
    return [
        *[
            Claim(
                name=f"{_case(bias)}, D = {width}: minimal value is the closed form (difference)",
                measured=gap,
                tolerance=1e-9,
                basis=f"{closed}; {_QUADRATIC}",
            )
            for (bias, width), gap in gaps.items()
        ],
    ]


def threshold_value(c: float, classes: int, *, bias: bool) -> float:
    """Return the minimal value as a function of c = K √(n λ_W λ_H): c − c²/2 up to 1, where all factors vanish.

    A bias free of decay fits the mean of the one-hot labels, and leaves K − 1 of K directions.
    """
    return (c - c * c / 2 if c < 1 else 0.5) * (1 - 1 / classes if bias else 1.0)


def _threshold_claims(settings: Settings, *, bias: bool) -> tuple[list[Claim], list[float]]:
    """Compare minimal value and classifier on both sides of the threshold; return the values, too."""
    counts = [settings.samples_per_class] * settings.classes
    unit = settings.classes * math.sqrt(settings.samples_per_class)
    models = {c: _minimum(settings, counts, settings.classes, c / unit, bias=bias) for c in settings.thresholds}
    norms = {c: float(model.classifier.detach().norm()) for c, model in models.items()}
    values = {c: model().item() for c, model in models.items()}
    case, share = _case(bias), "(1 − 1/K) of " if bias else ""
    return [
        Claim(
            name=f"{case}: minimal value is {share}c − c²/2 for c = K√(nλ_Wλ_H) < 1, and of 1/2 above (largest "
            "difference)",
            measured=largest(abs(own - threshold_value(c, settings.classes, bias=bias)) for c, own in values.items()),
            tolerance=1e-9,
            basis=f"Tirer & Bruna 2022, lemmas A.1 and B.1; {_QUADRATIC}",
        ),
        Claim(
            name=f"{case}, threshold: for c > 1 the zero solution is the minimum (largest norm of the classifier)",
            measured=largest(norm for c, norm in norms.items() if c > 1),
            tolerance=1e-5,
            basis="gradient over the curvature λ − √n/N there",
        ),
        Claim(
            name=f"{case}, threshold: for c < 1 it is not (smallest norm of the classifier)",
            measured=smallest(norm for c, norm in norms.items() if c < 1),
            expected=0.1,
            comparison="at least",
            basis="|W|² grows like 1 − c: above 0.01 by far",
        ),
    ], list(values.values())


def _centred(means: Tensor) -> Tensor:
    return means - means.mean(dim=0)


def _projection_claims(settings: Settings) -> list[Claim]:
    """Check for D < K - 1 that class means are a rank-D projection of the simplex, and W their multiple."""
    spreads, angles = [], []
    for classes, width in settings.narrow:
        counts = [settings.samples_per_class] * classes
        model = _minimum(settings, counts, width, settings.decay, bias=True)
        means = _centred(model.means)
        values = torch.linalg.svdvals(means)
        spreads.append(float(values.std(correction=0) / values.mean()))
        weight = model.classifier.detach()
        angles.append(float(1 - (weight * means).sum() / (weight.norm() * means.norm())))
    cases = ", ".join(f"{width} of {classes - 1}" for classes, width in settings.narrow)
    bound = "gradient over curvature, 1e-8 / 1e-2, and two digits"
    return [
        Claim(
            name=f"D < K − 1 ({cases}): the class means are a D-dimensional projection of a simplex (largest spread of "
            "singular values)",
            measured=largest(spreads),
            tolerance=1e-4,
            basis=f"Zhou et al. 2022: all D of them are equal; {bound}",
        ),
        Claim(
            name=f"D < K − 1 ({cases}): the classifier is a multiple of the class means (1 − cosine)",
            measured=largest(angles),
            tolerance=1e-8,
            basis=f"quadratic in the distance; {bound}",
        ),
    ]


def _plane(settings: Settings) -> dict[str, UnconstrainedFeatures]:
    """Minimise in two dimensions: MSE with its bias, cross-entropy without, which would put a class in the middle."""
    counts = [settings.samples_per_class] * settings.classes
    return {
        "MSE": _minimum(settings, counts, 2, settings.plane_decay, bias=True),
        "cross-entropy": _minimum(settings, counts, 2, settings.plane_decay, bias=False, loss="cross-entropy"),
    }


def _plane_claims(plane: Mapping[str, UnconstrainedFeatures]) -> list[Claim]:
    """Check what the slides say of few dimensions: unequal lengths and angles with MSE, none of it with CE."""
    lengths = {loss: _centred(model.means).norm(dim=1) for loss, model in plane.items()}
    uneven = {loss: float(length.std(correction=0) / length.mean()) for loss, length in lengths.items()}
    directions = torch.nn.functional.normalize(_centred(plane["MSE"].means), dim=1)
    nearest = (directions @ directions.T - 2 * torch.eye(len(directions), dtype=torch.float64)).max()
    right = {
        loss: float((model.logits.detach().argmax(dim=1) == model.labels).double().mean())
        for loss, model in plane.items()
    }
    picture = "the slides' picture, for a generic minimum: far above the error of the minimum"
    return [
        Claim(
            name="D = 2, MSE: class means of different lengths (standard deviation over mean)",
            measured=uneven["MSE"],
            expected=0.01,
            comparison="at least",
            basis=picture,
        ),
        Claim(
            name="D = 2, MSE: some angles are below 90° (smallest, in degrees)",
            measured=math.degrees(math.acos(min(1.0, float(nearest)))),
            expected=90.0,
            comparison="at most",
            basis="the slides: more than D + 1 vectors cannot all be obtuse",
        ),
        Claim(
            name="D = 2, cross-entropy without bias: class means of one length (standard deviation over mean)",
            measured=uneven["cross-entropy"],
            tolerance=1e-3,
            basis="corners of a regular polygon; gradient over the smallest curvature",
        ),
        Claim(
            name="D = 2: cross-entropy gets every training sample right (share)",
            measured=right["cross-entropy"],
            expected=1.0,
            basis="any number of directions in a plane is separable",
        ),
        Claim(
            name="D = 2: MSE does not (share right)",
            measured=right["MSE"],
            expected=0.99,
            comparison="at most",
            basis="the slides: D ≥ K − 1 is crucial for MSE; the shortest means lose to their neighbours",
        ),
    ]


def _bias_claims(settings: Settings) -> list[Claim]:
    """Check the regularised bias: between both frames, still aligned, a simplex when centred."""
    counts = [settings.samples_per_class] * settings.classes
    model = _minimum(settings, counts, settings.classes + 2, settings.decay, bias=True, bias_decay=settings.decay)
    measures, means, weight = model.measures(), model.means, model.classifier.detach()
    aligned = 1 - (weight * means).sum() / (weight.norm() * means.norm())
    observed = "observed by Tirer & Bruna 2022, remark on the regularised bias; gradient over curvature"
    return [
        Claim(
            name="decayed bias: centred class means are a simplex",
            measured=measures["nc2"],
            tolerance=1e-4,
            basis=observed,
        ),
        Claim(
            name="decayed bias: W is a multiple of the class means (1 − cosine)",
            measured=float(aligned),
            tolerance=1e-8,
            basis=observed,
        ),
    ]


def _imbalance_claims(settings: Settings) -> list[Claim]:
    """Check imbalanced classes without bias: |h_k|² = max(√n_k − Nλ, 0) / n_k, all orthogonal."""
    counts = settings.imbalanced
    model = _minimum(settings, counts, len(counts) + 2, settings.imbalanced_decay, bias=False)
    expected = [max(math.sqrt(n) - sum(counts) * settings.imbalanced_decay, 0.0) / n for n in counts]
    squared = model.means @ model.means.T
    value = minimal_value(counts, len(counts), settings.imbalanced_decay, bias=False)
    return [
        Claim(
            name=f"imbalanced n_k = {list(counts)}, without bias: minimal value is the closed form (difference)",
            measured=model().item() - value,
            tolerance=1e-9,
            basis=f"singular values √n_k of Y, shrunk; {_QUADRATIC}",
        ),
        Claim(
            name="imbalanced, without bias: class means are orthogonal, |m_k|² = max(√n_k − Nλ, 0)/n_k (largest error)",
            measured=float((squared - torch.tensor(expected, dtype=torch.float64).diag()).abs().max()),
            tolerance=1e-4,
            basis="gradient over curvature; small classes vanish",
        ),
    ]


def _distance(model: UnconstrainedFeatures, optimum: UnconstrainedFeatures) -> float:
    """Distance to the minima: all rotations of one of them (orthogonal Procrustes)."""
    own = torch.cat([model.classifier.detach(), model.features.detach()])
    best = torch.cat([optimum.classifier.detach(), optimum.features.detach()])
    left, _, right = torch.linalg.svd(best.T @ own)
    return float((own - best @ left @ right).norm())


def _error_bound(settings: Settings) -> tuple[Claim, dict[str, list[float]]]:
    """Compare distance over gradient along gradient descent with one over the smallest curvature."""
    classes, samples = 4, 2
    counts, width = [samples] * classes, classes
    decay = Decay(settings.decay, settings.decay)
    model, start = (
        UnconstrainedFeatures(counts, width, decay, make_loss("MSE"), bias=False, scale=settings.scale)
        for _ in range(2)
    )
    reach_minimum(model, settings.steps, 1e-12)
    trace = [
        (step, _distance(start, model), start.gradient_norm)
        for step in minimize(start, Optimizer("gradient descent", 1.0, settings.steps), 1e-8)
    ]
    curvatures = torch.linalg.eigvalsh(model.hessian())
    lowest = float(curvatures[curvatures > 1e-6 * curvatures.max()].min())
    near = [distance / gradient for _, distance, gradient in trace if distance < 0.1 and gradient > 1e-7]
    claim = Claim(
        name="error bound near the minimum: dist ≤ κ ‖∇F‖ with κ one over the smallest curvature (largest κ μ)",
        measured=largest(near) * lowest if near else math.nan,
        expected=1.0,
        comparison="at most",
        tolerance=0.1,
        basis="Zhou et al. 2022; κ from the Hessian's smallest non-zero eigenvalue, a tenth for the third order",
    )
    steps = [float(step) for step, _, _ in trace]
    ratios = [distance / gradient * lowest for _, distance, gradient in trace]
    return claim, {"step": drawing.thin(steps), "ratio": drawing.thin(ratios)}


def draw(curves: Mapping[str, Any]) -> Figure:
    """Draw the sweep, the plane and the error bound."""
    drawn, axes = drawing.figure(4, rows=2)
    sweep = curves["sweep"]
    grid = [step / 100 for step in range(150)]
    for index, case in enumerate(("without bias", "with bias")):
        closed = [threshold_value(c, curves["classes"], bias=case == "with bias") for c in grid]
        axes[0].plot(grid, closed, color=drawing.COLOURS[index], label=f"closed form, {case}")
        axes[0].plot(sweep["c"], sweep[case], "o", color=drawing.COLOURS[index], label=f"reached, {case}")
    axes[0].legend(fontsize=8)
    drawing.label(axes[0], "Minimal value, MSE", "c = K √(n λ_W λ_H)", "objective")
    for axis, (loss, means) in zip(axes[1:3], curves["plane"].items(), strict=True):
        for index, (x, y) in enumerate(means):
            axis.plot([0, x], [0, y], marker="o", color=drawing.COLOURS[index % len(drawing.COLOURS)])
        axis.set_aspect("equal", "datalim")
        drawing.label(axis, f"Class means in a plane: {loss}", "first feature", "second feature")
    bound = curves["error_bound"]
    axes[3].plot(bound["step"], bound["ratio"], color=drawing.COLOURS[0], label="distance · μ / ‖∇F‖")
    axes[3].axhline(1.0, color=drawing.COLOURS[1], linestyle="--", label="error bound")
    axes[3].legend(fontsize=8)
    drawing.label(axes[3], "Error bound along gradient descent", "step", "ratio", logy=True)
    return drawn


EXPERIMENT = Experiment(
    name="mse_closed_form",
    title="MSE on unconstrained features: closed forms",
    source="Tirer & Bruna 2022, arXiv:2202.08087; Zhou et al. 2022, arXiv:2203.01238",
    settings=Settings,
    run=run,
    draw=draw,
)
