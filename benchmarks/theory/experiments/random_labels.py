"""Random labels: perceptrons collapse on them, too, the more the wider, whatever the optimiser."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from matplotlib.figure import Figure

from benchmarks.theory.core import Claim, Experiment, Findings, drawing, largest, smallest
from benchmarks.theory.models.digit_networks import (
    CLASSES,
    OptimizerName,
    Trained,
    Training,
    digits,
    observe,
    perceptron,
)


@dataclass(frozen=True)
class Settings:
    """Widths, data, training, and what counts as collapsed."""

    widths: tuple[int, ...]
    depth: int
    samples_per_class: int
    trainings: dict[str, Training]
    fall: float
    distance: float
    seed: int


def run(settings: Settings) -> Findings:
    """Train perceptrons of all widths by SGD, and the widest by the other optimisers."""
    train, test = digits(settings.samples_per_class, settings.seed)
    data = (train.with_random_labels(settings.seed), test)

    def fit(width: int, optimizer: OptimizerName) -> Trained:
        net = perceptron(width, settings.depth, settings.seed)
        return observe(net, data, torch.nn.CrossEntropyLoss(), optimizer, settings.trainings[optimizer], looks=40)

    widest = settings.widths[-1]
    wide = {width: fit(width, "SGD") for width in settings.widths}
    ways = {name: wide[widest] if name == "SGD" else fit(widest, name) for name in get_args(OptimizerName)}
    return Findings(
        claims=[*_width_claims(wide), *_way_claims(settings, ways)],
        curves={
            "widths": {f"width {width}": _curve(trained) for width, trained in wide.items()},
            "optimizers": {name: _curve(trained) for name, trained in ways.items()},
        },
        notes=[
            f"width {width}: {trained.train_accuracy:.0%} of the random labels fitted, NC1 {trained.end['nc1']:.3g}; "
            f"{trained.test_accuracy:.0%} of the true digits right (chance is {1 / CLASSES:.0%})"
            for width, trained in wide.items()
        ],
        description=(
            "NC1, NC2 and NC3 of the training features on random labels. Top: by SGD, lower the wider the network; "
            "bottom: the widest by three optimisers."
        ),
    )


def _curve(trained: Trained) -> dict[str, list[float]]:
    done = [epoch / trained.epochs[-1] for epoch in trained.epochs]
    return {"done": done, **{name: trained.curve(name) for name in ("nc1", "nc2", "nc3")}}


def _width_claims(wide: Mapping[int, Trained]) -> list[Claim]:
    ends = [trained.end["nc1"] for trained in wide.values()]
    return [
        Claim(
            name="SGD: the wider the network the smaller NC1 (largest ratio from one width to the next)",
            measured=largest(wider / narrower for narrower, wider in itertools.pairwise(ends)),
            expected=1.0,
            comparison="at most",
            basis="the slides' figure; order alone",
        ),
        Claim(
            name="the labels are random: the true digits of the test split are not learned (share right)",
            measured=largest(trained.test_accuracy for trained in wide.values()),
            expected=0.2,
            comparison="at most",
            basis="chance is 0.1; a network that learned digits has more than 0.9",
        ),
    ]


def _way_claims(settings: Settings, ways: Mapping[str, Trained]) -> list[Claim]:
    titles = {"nc2": "NC2, distance from a simplex", "nc3": "NC3, self-duality"}
    return [
        Claim(
            name="widest network: all random labels are fitted by every optimiser (smallest share)",
            measured=smallest(trained.train_accuracy for trained in ways.values()),
            expected=1.0,
            basis="terminal phase of training",
        ),
        Claim(
            name="widest network: NC1 falls with every optimiser (largest end over random weights)",
            measured=largest(trained.fall("nc1") for trained in ways.values()),
            expected=settings.fall,
            comparison="at most",
            basis="the slides' figure; from the settings: real nets are stopped before zero",
        ),
        *[
            Claim(
                name=f"widest network, every optimiser: {title} (largest)",
                measured=largest(trained.end[key] for trained in ways.values()),
                tolerance=settings.distance,
                basis="zero in theory; from the settings: real nets are stopped before",
            )
            for key, title in titles.items()
        ],
    ]


def draw(curves: Mapping[str, Any]) -> Figure:
    """Draw NC1, NC2 and NC3 over the training."""
    drawn, axes = drawing.figure(6, rows=2)
    for row, group in enumerate(("widths", "optimizers")):
        for axis, name in zip(axes[3 * row :], ("nc1", "nc2", "nc3"), strict=False):
            for index, (label, curve) in enumerate(curves[group].items()):
                style = {"color": drawing.COLOURS[index], "linestyle": drawing.STYLES[index % 4]}
                axis.plot(curve["done"], curve[name], label=label, **style)
            axis.legend(fontsize=8)
            what = "by SGD" if group == "widths" else "widest network"
            drawing.label(axis, f"{name.upper()}: {what}", "share of the training", name.upper(), logy=True)
    return drawn


EXPERIMENT = Experiment(
    name="random_labels",
    title="Random labels collapse, too",
    source="Zhu et al. 2021, arXiv:2105.02375; Zhang et al. 2017, arXiv:1611.03530",
    settings=Settings,
    run=run,
    draw=draw,
)
