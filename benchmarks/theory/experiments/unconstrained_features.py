"""The unconstrained features model: every loss and every optimiser ends in neural collapse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from matplotlib.figure import Figure

from benchmarks.theory.core import Claim, Experiment, Findings, drawing, largest, smallest
from benchmarks.theory.models.unconstrained_features import (
    CURVATURE,
    Decay,
    LossName,
    Optimizer,
    OptimizerName,
    UnconstrainedFeatures,
    make_loss,
    minimize,
)

LOSSES: tuple[LossName, ...] = get_args(LossName)
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)
SQUARED = ("MSE", "rescaled MSE")


@dataclass(frozen=True)
class Settings:
    """Sizes, weight decay and step sizes."""

    classes: int
    width: int
    samples_per_class: int
    decay: float
    grid_classes: tuple[int, ...]
    grid_samples_per_class: int
    imbalanced: tuple[int, ...]
    imbalanced_decay: float
    gradient: float
    rates: dict[str, float]
    steps: int
    scale: float
    seed: int

    @property
    def distance(self) -> float:
        """How far from the minimum such a gradient can be: gradient over curvature, with a factor for its shape."""
        return 10 * self.gradient / self.decay


@dataclass
class Run:
    """One minimisation: its case, the measures along it, and the model at its end."""

    loss: LossName
    bias: bool
    optimizer: OptimizerName
    steps: list[int]
    measures: list[dict[str, float]]
    model: UnconstrainedFeatures

    @property
    def end(self) -> dict[str, float]:
        """Measures at the end, those of the frame that the case should end in."""
        end = dict(self.measures[-1])
        if self.loss in SQUARED and not self.bias:
            end |= {"nc2": end["nc2_of"], "nc3": end["nc3_of"]}
        return end


def minimum(
    settings: Settings,
    loss: LossName,
    counts: Sequence[int],
    width: int,
    *,
    bias: bool,
    optimizer: OptimizerName = "L-BFGS",
    decay: float | None = None,
) -> Run:
    """Minimise one case."""
    weight_decay = settings.decay if decay is None else decay
    model = UnconstrainedFeatures(
        counts,
        width,
        Decay(features=weight_decay, classifier=weight_decay),
        make_loss(loss),
        bias=bias,
        scale=settings.scale,
        seed=settings.seed,
    )
    how = Optimizer(optimizer, settings.rates[optimizer] / CURVATURE[loss], settings.steps)
    steps, measures = [], []
    for step in minimize(model, how, settings.gradient):
        steps.append(step)
        measures.append(model.measures())
    return Run(loss, bias, optimizer, steps, measures, model)


def run(settings: Settings) -> Findings:
    """Minimise all cases."""
    counts = [settings.samples_per_class] * settings.classes
    cases = [(loss, bias) for loss in LOSSES for bias in (True, False)]
    by_optimizer = [
        minimum(settings, loss, counts, settings.width, bias=bias, optimizer=optimizer)
        for loss, bias in cases
        for optimizer in OPTIMIZERS
    ]
    grid = [run for loss, bias in cases for run in _grid(settings, loss, bias)]
    skewed = [
        minimum(settings, loss, settings.imbalanced, settings.width, bias=bias, decay=settings.imbalanced_decay)
        for loss, bias in cases
    ]
    shown = [run for run in by_optimizer if run.loss == "cross-entropy" and run.bias]
    by_lbfgs = [run for run in by_optimizer if run.optimizer == "momentum" and run.bias]
    return Findings(
        claims=_collapse_claims(settings, by_optimizer, grid) + _imbalance_claims(settings, skewed),
        curves={
            "optimizers": {run.optimizer: _curve(run) for run in shown},
            "losses": {run.loss: _curve(run) for run in by_lbfgs},
        },
        description=(
            "NC1, NC2 and NC3 by step on log scales. Top: cross-entropy with bias by four optimisers; bottom: five "
            "losses with bias by momentum. All fall to zero, up to the gradient at which they were stopped."
        ),
    )


def _grid(settings: Settings, loss: LossName, bias: bool) -> list[Run]:
    """Minimise in every size; an orthogonal frame has no room in K - 1 dimensions."""
    frame = loss in SQUARED and not bias
    return [
        minimum(settings, loss, [settings.grid_samples_per_class] * classes, width, bias=bias)
        for classes in settings.grid_classes
        for width in (classes - 1, classes, 2 * classes)
        if not (frame and width < classes)
    ]


def _curve(run: Run) -> dict[str, list[float]]:
    curve = {
        name: drawing.thin([max(measure[name], 1e-18) for measure in run.measures]) for name in ("nc1", "nc2", "nc3")
    }
    return {"step": drawing.thin([float(step) for step in run.steps]), **curve}


def _worst(runs: Sequence[Run], name: str) -> float:
    return largest(run.end[name] for run in runs)


def _collapse_claims(settings: Settings, by_optimizer: list[Run], grid: list[Run]) -> list[Claim]:
    claims = []
    for loss in LOSSES:
        for bias in (True, False):
            runs = [run for run in (*by_optimizer, *grid) if (run.loss, run.bias) == (loss, bias)]
            claims += _case_claims(settings, loss, bias, runs)
    return claims


def _case_claims(settings: Settings, loss: LossName, bias: bool, runs: list[Run]) -> list[Claim]:
    frame = "an orthogonal frame" if loss in SQUARED and not bias else "a simplex"
    case = f"{loss} {'with' if bias else 'without'} bias, {len(runs)} runs"
    error = "gradient over curvature: dist ≤ κ‖∇F‖ with κ = 10/λ"
    basis = {
        "gradient": "stopping criterion",
        "nc1": f"squared distance; {error}",
        "nc2": error,
        "nc3": error,
    }
    names = {
        "gradient": "gradient",
        "nc1": "NC1",
        "nc2": f"NC2, distance from {frame}",
        "nc3": "NC3, self-duality",
    }
    tolerance = {
        "gradient": settings.gradient,
        "nc1": settings.distance**2,
        "nc2": settings.distance,
        "nc3": settings.distance,
    }
    claims = [
        Claim(
            name=f"{case}: {names[key]} (largest)",
            measured=_worst(runs, key),
            tolerance=tolerance[key],
            basis=basis[key],
        )
        for key in names
    ]
    if loss != "focal":  # not convex in the logits: no certificate
        claims.append(
            Claim(
                name=f"{case}: global minimum, dual certificate ‖∇g‖ / λ (largest)",
                measured=largest(run.model.certificate() for run in runs),
                expected=1.0,
                comparison="at most",
                tolerance=settings.distance,
                basis=f"nuclear norm duality; {error}",
            )
        )
    return claims


def _imbalance_claims(settings: Settings, runs: list[Run]) -> list[Claim]:
    convex = [run for run in runs if run.loss != "focal"]
    entropy = [run for run in runs if run.loss == "cross-entropy"]
    counts = torch.tensor(settings.imbalanced)
    many, few = (counts == counts.max()).nonzero().flatten(), (counts == counts.min()).nonzero().flatten()
    gains = []
    for run in entropy:
        directions = torch.nn.functional.normalize(run.model.classifier.detach(), dim=1)
        cosine = directions @ directions.T
        gains.append(float(cosine[few[0], few[1]] - cosine[many[0], many[1]]))
    return [
        Claim(
            name="imbalanced classes, all losses: NC1 (largest)",
            measured=_worst(runs, "nc1"),
            tolerance=settings.distance**2,
            basis="Jensen's inequality needs no balance; tolerance as above",
        ),
        Claim(
            name="imbalanced classes, convex losses: global minimum, dual certificate (largest)",
            measured=largest(run.model.certificate() for run in convex),
            expected=1.0,
            comparison="at most",
            tolerance=settings.distance,
            basis="as above",
        ),
        Claim(
            name="imbalanced classes, cross-entropy: the rows of small classes are closer to each other than those of "
            "large ones (smallest gain of the cosine)",
            measured=smallest(gains),
            expected=0.01,
            comparison="at least",
            basis="Fang et al. 2021, minority collapse: order; a hundredth is far above the error of the minimum",
        ),
    ]


def draw(curves: Mapping[str, Any]) -> Figure:
    """Draw NC1, NC2 and NC3 by step."""
    drawn, axes = drawing.figure(6, rows=2)
    titles = {"nc1": "NC1", "nc2": "NC2, distance from a simplex", "nc3": "NC3, self-duality"}
    for row, group in enumerate(("optimizers", "losses")):
        for axis, (name, title) in zip(axes[3 * row :], titles.items(), strict=False):
            for index, (label, curve) in enumerate(curves[group].items()):
                style = {"color": drawing.COLOURS[index], "linestyle": drawing.STYLES[index % 4]}
                axis.plot([step + 1 for step in curve["step"]], curve[name], label=label, **style)
            axis.legend(fontsize=8)
            what = "cross-entropy" if group == "optimizers" else "by momentum"
            drawing.label(axis, f"{title}: {what}", "step + 1", title.split(",")[0], logx=True, logy=True)
    return drawn


EXPERIMENT = Experiment(
    name="unconstrained_features",
    title="Unconstrained features: all losses and optimisers collapse",
    source="Zhu et al. 2021, arXiv:2105.02375; Zhou et al. 2022, arXiv:2203.01238 and arXiv:2210.02192; Tirer & Bruna "
    "2022, arXiv:2202.08087; Fang et al. 2021, 10.1073/pnas.2103091118",
    settings=Settings,
    run=run,
    draw=draw,
)
