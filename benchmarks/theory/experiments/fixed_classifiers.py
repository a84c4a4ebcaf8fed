"""Learned against fixed classifiers, all features against d = K: as accurate, with fewer parameters."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks.theory.core import Claim, Experiment, Findings, drawing, largest, smallest
from benchmarks.theory.models.digit_networks import (
    CLASSES,
    Head,
    Trained,
    Training,
    digits,
    observe,
    residual_network,
)
from nc_finetune.heads import SimplexETFHead

_LEARNED, _FIXED = "learned", "fixed"


@dataclass(frozen=True)
class Settings:
    """Network, data, training, and what is expected."""

    network: str
    samples_per_class: int
    training: Training
    par: float
    saving: float
    seed: int


def run(settings: Settings) -> Findings:
    """Train all four."""
    data = digits(settings.samples_per_class, settings.seed)
    found = {}
    for width in (None, CLASSES):
        # Features are not negative: in K dimensions they can reach the corners of a simplex along the axes.
        orientation = "canonical" if width else "random"
        fixed = functools.partial(SimplexETFHead, normalize=False, orientation=orientation)
        heads: dict[str, Head] = {_LEARNED: nn.Linear, _FIXED: fixed}
        for name, head in heads.items():
            net = residual_network(settings.network, head, width=width, seed=settings.seed)
            loss = torch.nn.CrossEntropyLoss()
            found[name, width] = observe(net, data, loss, "SGD", settings.training)
    named = {_name(*key): trained for key, trained in found.items()}
    whole = named[_name(_LEARNED, None)]
    return Findings(
        claims=_claims(settings, named, whole),
        curves={
            name: {"epoch": trained.epochs, "nc1": trained.curve("nc1"), "nc2": trained.curve("nc2")}
            for name, trained in named.items()
        }
        | {"accuracy": {name: [trained.train_accuracy, trained.test_accuracy] for name, trained in named.items()}},
        notes=[
            f"{settings.network}, {name}: {trained.size:,} parameters ({1 - trained.size / whole.size:.1%} saved), "
            f"test accuracy {trained.test_accuracy:.1%}"
            for name, trained in named.items()
        ],
        description=(
            "NC1 and NC2 of the training features by epoch for learned and fixed classifiers, with all features and "
            "with K of them, and their test accuracies: on a par."
        ),
    )


def _name(classifier: str, width: int | None) -> str:
    return f"{classifier} classifier, {'all features' if width is None else 'd = K'}"


def _claims(settings: Settings, named: Mapping[str, Trained], whole: Trained) -> list[Claim]:
    others = {name: trained for name, trained in named.items() if trained is not whole}
    smallest_net = named[_name(_FIXED, CLASSES)]
    return [
        Claim(
            name="all four fit the training digits (smallest share right)",
            measured=smallest(trained.train_accuracy for trained in named.values()),
            expected=1.0,
            basis="terminal phase of training",
        ),
        *[
            Claim(
                name=f"{name}: test accuracy on a par with the learned classifier on all features (loss)",
                measured=whole.test_accuracy - trained.test_accuracy,
                comparison="at most",
                tolerance=settings.par,
                basis="the slides' figure; from the settings: about three standard errors of a difference",
            )
            for name, trained in others.items()
        ],
        Claim(
            name="a fixed classifier saves its K (D + 1) parameters (share)",
            measured=1 - named[_name(_FIXED, None)].size / whole.size,
            expected=_classifier_share(settings, whole),
            tolerance=1e-9,
            basis="counting",
        ),
        Claim(
            name=f"{settings.network}: d = K with a fixed classifier saves parameters (share)",
            measured=1 - smallest_net.size / whole.size,
            expected=settings.saving,
            tolerance=0.005,
            basis="the slides' 21 % of a ResNet18, rounded; of the short form's net by counting",
        ),
        Claim(
            name="all four: NC1 falls (largest end over random weights)",
            measured=largest(trained.fall("nc1") for trained in named.values()),
            expected=0.5,
            comparison="at most",
            basis="the slides' figure; order: at least by half",
        ),
    ]


def _classifier_share(settings: Settings, whole: Trained) -> float:
    features = residual_network(settings.network).body.backbone.num_features  # type: ignore[union-attr]
    return float(CLASSES * (features + 1) / whole.size)  # type: ignore[operator]


def draw(curves: Mapping[str, Any]) -> Figure:
    """Draw NC1 and NC2 by epoch, and accuracies."""
    drawn, axes = drawing.figure(3, height=3.8)
    names = list(curves["accuracy"])
    for axis, key in zip(axes, ("nc1", "nc2"), strict=False):
        drawing.lines(axis, curves[names[0]]["epoch"], {name: curves[name][key] for name in names})
        drawing.label(axis, key.upper(), "epoch", key.upper(), logy=True)
    tests = [100 * accuracies[1] for accuracies in curves["accuracy"].values()]
    axes[2].barh(names, tests, color=drawing.COLOURS[: len(names)])
    axes[2].set_xlim(min(tests) - 2, 100)
    axes[2].invert_yaxis()
    axes[2].tick_params(axis="y", labelsize=8)
    drawing.label(axes[2], "Test accuracy", "accuracy (%)", "")
    return drawn


EXPERIMENT = Experiment(
    name="fixed_classifiers",
    title="Fixed classifiers, and no more features than classes",
    source="Zhu et al. 2021, arXiv:2105.02375",
    settings=Settings,
    run=run,
    draw=draw,
)
