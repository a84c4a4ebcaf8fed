"""Multi-label features: tags alone collapse to a simplex, several tags to the scaled average of theirs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.theory.core import Claim, Experiment, Findings, drawing, largest
from benchmarks.theory.models.unconstrained_features import (
    Decay,
    Optimizer,
    UnconstrainedFeatures,
    minimize,
    reach_minimum,
)
from nc_finetune.functional import multilabel_collapse, nc3_etf_distance, tag_means
from nc_finetune.losses import PickAllLabelsLoss


@dataclass(frozen=True)
class Settings:
    """Sizes and counts."""

    tags: int
    width: int
    alone: int
    pairs: int
    triples: int
    rare_pairs: int
    uneven_pairs: tuple[int, ...]
    decay: float
    gradient: float
    steps: int
    looks_width: int
    scale: float
    seed: int

    @property
    def distance(self) -> float:
        """How far from the minimum such a gradient can be."""
        return 10 * self.gradient / self.decay


def tag_rows(tags: int, counts: Mapping[int, Sequence[int]]) -> Tensor:
    """Return one row of tags a sample: ``counts[m]`` samples of each set of m tags, in lexicographic order."""
    rows = [
        [int(tag in chosen) for tag in range(tags)]
        for multiplicity, numbers in counts.items()
        for chosen, number in zip(itertools.combinations(range(tags), multiplicity), numbers, strict=True)
        for _ in range(number)
    ]
    return torch.tensor(rows)


def _even(settings: Settings, multiplicity: int, number: int) -> list[int]:
    return [number] * len(list(itertools.combinations(range(settings.tags), multiplicity)))


@dataclass(frozen=True)
class Collapse:
    """The measures at the minimum."""

    gradient: float
    certificate: float
    variability: float
    etf_distance: float
    scaled_average: float
    nc3: float


def train(settings: Settings, tags: Tensor, *, bias: bool = True) -> Collapse:
    """Minimise the pick-all-labels loss over free features."""
    model = _model(settings, tags, settings.width, bias=bias)
    reach_minimum(model, settings.steps, settings.gradient)
    features = model.features.detach()
    measured = multilabel_collapse(features, tags)
    return Collapse(
        model.gradient_norm,
        model.certificate(),
        *(float(value) for value in measured),
        float(nc3_etf_distance(model.classifier.detach(), tag_means(features, tags))),
    )


def _model(settings: Settings, tags: Tensor, width: int, *, bias: bool) -> UnconstrainedFeatures:
    # With labels of its own the model takes the number of classes alone from the counts, of samples from the labels.
    return UnconstrainedFeatures(
        [0] * tags.shape[1],
        width,
        Decay(settings.decay, settings.decay),
        PickAllLabelsLoss(),
        bias=bias,
        scale=settings.scale,
        seed=settings.seed,
        labels=tags,
    )


def run(settings: Settings) -> Findings:
    """Minimise for balanced and imbalanced sets of tags."""
    alone = _even(settings, 1, settings.alone)
    balanced = {1: alone, 2: _even(settings, 2, settings.pairs), 3: _even(settings, 3, settings.triples)}
    rare = {1: alone, 2: _even(settings, 2, settings.rare_pairs)}
    uneven = {1: alone, 2: settings.uneven_pairs}
    found = {
        (name, bias): train(settings, tag_rows(settings.tags, counts), bias=bias)
        for name, counts in (("balanced", balanced), ("rare pairs", rare), ("uneven pairs", uneven))
        for bias in (True, False)
    }
    return Findings(
        claims=[*_exact_claims(settings, found), *_uneven_claims(settings, found)],
        curves={"phases": _phases(settings)},
        description=(
            "Free features of three tags in a plane at the start, in the middle and at the end of training. At the end "
            "samples of one tag lie on the corners of a triangle, samples of two tags on one point between their "
            "corners."
        ),
    )


def _exact_claims(settings: Settings, found: Mapping[tuple[str, bool], Collapse]) -> list[Claim]:
    names = {
        "gradient": ("gradient", settings.gradient, "stopping criterion"),
        "variability": ("variability of each set of tags", settings.distance**2, "squared distance"),
        "etf_distance": ("tags alone: distance from a simplex", settings.distance, "distance"),
        "scaled_average": ("several tags: 1 − cosine with the sum of their means", settings.distance**2, "squared"),
        "nc3": ("self-duality of classifier and tags alone", settings.distance, "distance"),
    }
    return [
        Claim(
            name=f"{case}, with and without bias: {title} (largest)",
            measured=largest(getattr(found[case, bias], key) for bias in (True, False)),
            tolerance=tolerance,
            basis=f"theorem (Li et al. 2023): zero; {kind}: gradient over curvature, 10 ‖∇F‖/λ",
        )
        for case in ("balanced", "rare pairs")
        for key, (title, tolerance, kind) in names.items()
    ]


def _uneven_claims(settings: Settings, found: Mapping[tuple[str, bool], Collapse]) -> list[Claim]:
    both = [found["uneven pairs", bias] for bias in (True, False)]
    etf, average = both[0].etf_distance, both[0].scaled_average
    return [
        Claim(
            name="uneven pairs: the minimum is global, dual certificate (largest)",
            measured=largest(end.certificate for end in both),
            expected=1.0,
            comparison="at most",
            tolerance=settings.distance,
            basis="the loss is convex in the logits",
        ),
        Claim(
            name="uneven pairs: variability of each set of tags (largest)",
            measured=largest(end.variability for end in both),
            tolerance=settings.distance**2,
            basis="Jensen's inequality needs no balance",
            amends="the slides say that the structure holds for imbalanced data. Between multiplicities it does, "
            "exactly (rare pairs, above). With uneven counts of the pairs only the collapse of each set is exact: the "
            f"global minimum is {etf:.2g} off a simplex, and with a bias {average:.2g} off the scaled average.",
        ),
        Claim(
            name="uneven pairs: tags alone are near a simplex (largest distance)",
            measured=largest(end.etf_distance for end in both),
            expected=0.2,
            comparison="at most",
            basis="the slides' picture, read as within a tenth of the largest possible distance 2",
        ),
    ]


def _phases(settings: Settings) -> list[dict[str, Any]]:
    """Record features in a plane at three times of gradient descent."""
    tags = tag_rows(3, {1: [settings.alone] * 3, 2: [settings.pairs] * 3})
    model = _model(settings, tags, settings.looks_width, bias=True)
    kinds = ["+".join(str(index + 1) for index, present in enumerate(row) if present) for row in tags.tolist()]
    wanted, phases = {0: "start", 100: "middle", 3000: "end"}, []
    for step in minimize(model, Optimizer("gradient descent", 0.5, max(wanted), look=100), 0.0):
        if step in wanted:
            phases.append({"title": wanted[step], "kinds": kinds, "points": model.features.detach().tolist()})
    return phases


def draw(curves: Mapping[str, Any]) -> Figure:
    """Draw the three phases."""
    drawn, axes = drawing.figure(3, height=4.0)
    for axis, phase in zip(axes, curves["phases"], strict=True):
        for index, kind in enumerate(dict.fromkeys(phase["kinds"])):
            points = [point for point, own in zip(phase["points"], phase["kinds"], strict=True) if own == kind]
            marker = "o" if len(kind) == 1 else "^"
            axis.scatter(*zip(*points, strict=True), color=drawing.COLOURS[index], marker=marker, label=f"tags {kind}")
        axis.set_aspect("equal", "datalim")
        drawing.label(axis, f"{phase['title'].capitalize()} of training", "first feature", "second feature")
    axes[0].legend(fontsize=8)
    return drawn


EXPERIMENT = Experiment(
    name="multi_label",
    title="Multi-label features and the scaled average",
    source="Li et al. 2023, Neural collapse in multi-label learning with pick-all-label loss, arXiv:2310.15903",
    settings=Settings,
    run=run,
    draw=draw,
)
