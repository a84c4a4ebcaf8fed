"""Residual networks on digits: cross-entropy collapses to a simplex, MSE without bias to an orthogonal frame."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from torch import nn

from benchmarks.theory.core import Claim, Experiment, Findings, drawing, smallest
from benchmarks.theory.models.digit_networks import (
    CLASSES,
    OptimizerName,
    Trained,
    Training,
    digits,
    observe,
    residual_network,
)
from benchmarks.theory.models.unconstrained_features import make_loss

_MSE = "MSE without bias"
_CASES: dict[str, tuple[OptimizerName, bool]] = {  # optimiser, and whether with cross-entropy
    "SGD": ("SGD", True),
    "Adam": ("Adam", True),
    "L-BFGS": ("L-BFGS", True),
    _MSE: ("SGD", False),
}


@dataclass(frozen=True)
class Settings:
    """Network, data, training, and what counts as collapsed."""

    network: str
    samples_per_class: int
    trainings: dict[str, Training]
    falls: dict[str, float]
    distance: float
    frame_distance: float
    seed: int


def run(settings: Settings) -> Findings:
    """Train by SGD with both losses, and with cross-entropy by the other optimisers."""
    data = digits(settings.samples_per_class, settings.seed)
    found = {}
    for case, training in settings.trainings.items():
        optimizer, entropy = _CASES[case]
        net = residual_network(settings.network, functools.partial(nn.Linear, bias=entropy), seed=settings.seed)
        loss = make_loss("cross-entropy" if entropy else "MSE")
        found[case] = observe(net, data, loss, optimizer, training)
    return Findings(
        claims=[*_collapse_claims(settings, found), *_frame_claims(settings, found)],
        curves={
            case: {
                "epoch": trained.epochs,
                **{
                    name: trained.curve(name + ("_of" if case == _MSE and name != "nc1" else ""))
                    for name in ("nc1", "nc2", "nc3")
                },
            }
            for case, trained in found.items()
        },
        notes=[
            f"{settings.network}, {case}: test accuracy {trained.test_accuracy:.1%}, NC1 {trained.end['nc1']:.3g} "
            f"(at random weights {trained.measures[0]['nc1']:.3g}), NC2 {trained.end['nc2']:.3g} from a simplex, "
            f"{trained.end['nc2_of']:.3g} from an orthogonal frame"
            for case, trained in found.items()
        ],
        description=(
            "NC1, NC2 and NC3 of the training features by epoch, for cross-entropy by SGD and Adam and for MSE "
            "without bias: all fall. NC2 and NC3 are distances from a simplex, for MSE from an orthogonal frame."
        ),
    )


def _collapse_claims(settings: Settings, found: Mapping[str, Trained]) -> list[Claim]:
    return [
        Claim(
            name="all runs fit the training digits (smallest share right)",
            measured=smallest(trained.train_accuracy for trained in found.values()),
            expected=1.0,
            basis="terminal phase of training",
        ),
        *[
            Claim(
                name=f"{settings.network}, {case}: NC1 falls (end over random weights)",
                measured=trained.fall("nc1"),
                expected=settings.falls[case],
                comparison="at most",
                basis="the slides' figure; from the settings: real nets are stopped long before zero",
            )
            for case, trained in found.items()
        ],
    ]


def _frame_claims(settings: Settings, found: Mapping[str, Trained]) -> list[Claim]:
    entropy, squared = found["SGD"].end, found[_MSE].end
    stopped = "zero in theory; from the settings: real nets are stopped before"
    return [
        Claim(
            name="cross-entropy with bias: NC2, distance from a simplex",
            measured=entropy["nc2"],
            tolerance=settings.distance,
            basis=stopped,
        ),
        Claim(
            name="cross-entropy with bias: NC3, self-duality with a simplex",
            measured=entropy["nc3"],
            tolerance=settings.distance,
            basis=stopped,
        ),
        Claim(
            name="cross-entropy with bias: mean cosine of classifier rows is −1/(K − 1)",
            measured=entropy["cosine"],
            expected=-1 / (CLASSES - 1),
            tolerance=0.02,
            basis="rows of a simplex; a fifth of the difference from an orthogonal frame",
        ),
        Claim(
            name=f"{_MSE}: NC3, W times class means is a multiple of the identity",
            measured=squared["nc3_of"],
            tolerance=settings.distance,
            basis=stopped,
        ),
        Claim(
            name=f"{_MSE}: W times class means is nearer to the identity than with cross-entropy (ratio of distances)",
            measured=squared["nc3_of"] / entropy["nc3_of"],
            expected=0.5,
            comparison="at most",
            basis="0 in an orthogonal frame, 1 if both were simplices; half way",
        ),
        Claim(
            name=f"{_MSE}: NC2, distance of class means from an orthogonal frame",
            measured=squared["nc2_of"],
            tolerance=settings.frame_distance,
            basis="from the settings: random weights are above 1 away",
            amends="theory says an orthogonal frame. Networks with BatchNorm are on their way to it when they are "
            f"stopped, not there: the mean cosine of classifier rows is {squared['cosine']:.3f}, between 0 of an "
            f"orthogonal frame and {-1 / (CLASSES - 1):.3f} of a simplex, and that of class means is positive in turn. "
            "What they share, the global mean, is not seen by NC1, and it moves slowest.",
        ),
        Claim(
            name=f"{_MSE}: classifier rows are nearer to right angles than those of cross-entropy (ratio of cosines)",
            measured=abs(squared["cosine"] / entropy["cosine"]),
            expected=0.8,
            comparison="at most",
            basis="0 in an orthogonal frame, 1 in a simplex",
        ),
    ]


def draw(curves: Mapping[str, Any]) -> Figure:
    """Draw NC1, NC2 and NC3 by epoch."""
    drawn, axes = drawing.figure(3, height=3.8)
    for axis, name in zip(axes, ("nc1", "nc2", "nc3"), strict=True):
        for index, (case, curve) in enumerate(curves.items()):
            done = [epoch / curve["epoch"][-1] for epoch in curve["epoch"]]
            style = {"color": drawing.COLOURS[index], "linestyle": drawing.STYLES[index]}
            axis.plot(done, curve[name], label=case, **style)
        axis.legend(fontsize=8)
        drawing.label(axis, name.upper(), "share of the training", name.upper(), logy=True)
    return drawn


EXPERIMENT = Experiment(
    name="residual_networks",
    title="Residual networks collapse",
    source="Papyan et al. 2020, 10.1073/pnas.2015509117; Zhu et al. 2021, arXiv:2105.02375; Tirer & Bruna 2022, "
    "arXiv:2202.08087",
    settings=Settings,
    run=run,
    draw=draw,
)
