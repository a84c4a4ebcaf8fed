"""Ways to break one input of an experiment, and the claims that must fail then, as patterns of their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.theory.models.digit_networks import Split
from nc_finetune.losses import RescaledMSELoss

Patch = Callable[[Any, pytest.MonkeyPatch], None]  # of the experiment's module


@dataclass(frozen=True)
class Breakage:
    """What is broken: settings, or names in the experiment's module."""

    what: str
    fails: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    patch: Patch | None = None


def _replace(name: str, make: Callable[[Any], Any]) -> Patch:
    """Put something else, made from the original, in the place of a name."""
    return lambda module, patch: patch.setattr(module, name, make(getattr(module, name)))


def _decay_times(factor: float) -> Patch:
    return _replace("Decay", lambda real: lambda *decays, **named: real(
        *(factor * decay for decay in decays), **{name: factor * decay for name, decay in named.items()}
    ))  # fmt: skip


def _gaussian(real: Any) -> Any:
    def frame(dimension: int, ratio: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(dimension, ratio * dimension, generator=generator, dtype=torch.float64)

    return frame


def _off_the_point(real: Any) -> Any:
    def hessian(data: torch.Tensor, point: torch.Tensor) -> Any:
        moved = point + 0.3 * torch.eye(len(point), dtype=point.dtype)[2]
        return real(data, moved / moved.norm())

    return hessian


class _RankOne(nn.Linear):
    """A classifier whose rows are all the same but for their length."""

    def __init__(self, inputs: int, outputs: int, **options: Any) -> None:
        super().__init__(inputs, outputs)
        self.weight.data.copy_(torch.arange(1.0, outputs + 1).unsqueeze(1) * torch.ones(inputs))
        self.weight.requires_grad_(False)


def _shuffled(real: Any) -> Any:
    def ratio(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        measured: torch.Tensor = real(features, labels[order], classes)
        return measured

    return ratio


def _only_lbfgs(module: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "OPTIMIZERS", ("L-BFGS",))


def _one_feature(real: Any) -> Any:
    return lambda *args, width=None, **options: real(*args, width=1 if width else None, **options)


def _swapped_activation(real: Any) -> Any:
    return lambda settings, activation: real(settings, torch.relu if activation is not torch.relu else lambda x: x)


def _swapped_levels(real: Any) -> Any:
    def train(settings: Any, activation: Any) -> Any:
        trace = real(settings, activation)
        return replace(trace, shallow=trace.deep, deep=trace.shallow)

    return train


def _true_labels(module: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Split, "with_random_labels", lambda self, seed: self)


def _other_rescaling(real: Any) -> Any:
    return lambda alpha, target: RescaledMSELoss(alpha=2 / alpha, target=1 / target)


def _other_target(real: Any) -> Any:
    return lambda alpha, target: RescaledMSELoss(alpha=alpha, target=1 / target)


def _epochs(module: Any, patch: pytest.MonkeyPatch) -> None:
    """Train for one epoch."""
    real = module.observe

    def observe(net: Any, data: Any, loss: Any, name: Any, training: Any, **options: Any) -> Any:
        return real(net, data, loss, name, replace(training, epochs=1), **options)

    patch.setattr(module, "observe", observe)


BREAKAGES: dict[str, list[Breakage]] = {
    "unconstrained_features": [
        Breakage("no training", (r"bias, \d+ runs", r"all losses: NC1", "convex losses"), {"steps": 0}),
        Breakage("no imbalance", ("rows of small classes",), {"imbalanced": (3, 3), "grid_classes": (4,)}, _only_lbfgs),
    ],
    "mse_closed_form": [
        Breakage(
            "no training",
            ("D < K", "class means of one length", "cross-entropy gets every", "decayed bias", "error bound"),
            {"steps": -1},
        ),
        Breakage(
            "a quarter of the decay",
            ("minimal value is", "for c > 1 the zero", "class means are orthogonal"),
            {"steps": 500},
            _decay_times(0.25),
        ),
        Breakage("four times the decay", ("for c < 1 it is not",), {"steps": 500}, _decay_times(4.0)),
        Breakage(
            "D = K − 1", ("of different lengths", "below 90°", "MSE does not"), {"classes": 3, "narrow": ((3, 2),)}
        ),
    ],
    "strict_saddle": [
        Breakage("no training", ("all three are critical",), {"steps": -1}),
        Breakage(
            "decay above the threshold",
            ("lie above the minimum", "negative curvature at both", "none at the global"),
            {"decay": 1.0},
        ),
        Breakage("twice the decay", ("curvature at zero is", "zero is no saddle"), patch=_decay_times(2.0)),
    ],
    "feature_normalization": [
        Breakage("one iteration", ("minimal value", "Riemannian gradient", "NC[123]"), {"iterations": 1}),
    ],
    "extended_features": [
        Breakage(
            "hardly any training",
            ("closed form", "linear, .*NC[123]", "ReLU, deeper level: NC[123]", "nuclear norms"),
            {"steps": 100},
        ),
        Breakage(
            "linear and ReLU swapped",
            ("at the same rate", "same at the start", "collapses faster", "no orthogonal frame"),
            {"steps": 3000},
            _replace("train", _swapped_activation),
        ),
        Breakage("levels swapped", ("throughout",), {"steps": 100}, _replace("train", _swapped_levels)),
    ],
    "multi_label": [Breakage("no training", (".",), {"steps": -1})],
    "residual_networks": [Breakage("one epoch", (".",), patch=_epochs)],
    "fixed_classifiers": [
        Breakage("one epoch", ("fit the training digits", "NC1 falls"), patch=_epochs),
        Breakage(
            "a learned bias, one direction, one feature",
            ("on a par", "saves"),
            patch=lambda module, patch: (
                patch.setattr(module, "SimplexETFHead", _RankOne),
                _replace("residual_network", _one_feature)(module, patch),
            )[1],
        ),
    ],
    "random_labels": [
        Breakage("one epoch", ("are fitted", "NC1 falls", "NC2", "NC3"), patch=_epochs),
        Breakage("widths the other way round", ("the wider the network",), {"widths": (64, 16)}),
        Breakage("true labels", ("the labels are random",), patch=_true_labels),
    ],
    "parsimony": [
        Breakage(
            "Gaussian initialisation",
            ("hidden weight stay", "follows", "do not turn", "low rank", "data not whitened"),
            {"initialization": "normal"},
        ),
        Breakage("no training", ("do learn",), {"steps": 0}),
    ],
    "progressive_separation": [
        Breakage(
            "hardly any training",
            (
                "loss is at its global",
                "largest ratio",
                r"ε\^p",
                r"ε\^q",
                "initialisation: log",
                "as fast as the orthog",
            ),
            {"steps": 10},
        ),
        Breakage(
            "Gaussian initialisation",
            ("singular values of every", "balanced"),
            {"initialization": "normal"},
        ),
        Breakage("shuffled labels", (r"with depth \(smallest R²",), patch=_replace("trace_ratio", _shuffled)),
        Breakage("hardly any training with ReLU", ("ReLU networks",), {"relu_steps": 10}),
    ],
    "compressed_factors": [
        Breakage("Gaussian initialisation", ("products differ",), {"initialization": "normal", "completion_steps": 40}),
        Breakage(
            "a rank guessed too low",
            ("as good as wide", "compressed faster", "narrow factors", "compressed, γ = 1 recovers"),
            {"guessed_rank": 1, "completion_steps": 400},
        ),
        Breakage("hardly any training", ("wide recovers",), {"completion_steps": 40, "factorization_steps": 40}),
        Breakage("everything observed", ("fixed outer factors",), {"observed": 1.1, "factorization_steps": 40}),
        Breakage(
            "rates the other way round", ("larger γ",), {"discrepancies": (1.0, 0.1, 0.0), "factorization_steps": 40}
        ),
    ],
    "tensor_decomposition": [
        Breakage(
            "a Gaussian matrix in place of the frame",
            ("unit-norm and tight", "share of", "random starts find", r"E\|yᵀq"),
            {"iterations": 50, "starts": 20, "observations": 10000},
            _replace("unbiased_bases", _gaussian),
        ),
        Breakage(
            "not at the saddle",
            ("is a critical", "strict saddle"),
            settings={"iterations": 5, "starts": 2, "observations": 500},
            patch=_replace("spherical_hessian", _off_the_point),
        ),
    ],
    "loss_landscape": [
        Breakage("other rescaling", ("is M²/α", "α = 5.*steeper"), patch=_replace("RescaledMSELoss", _other_rescaling)),
        Breakage("other target", ("M = 5: steeper",), patch=_replace("RescaledMSELoss", _other_target)),
        Breakage(
            "short outputs",
            ("cross-entropy: steeper",),
            patch=lambda module, patch: patch.setattr(module, "_ENTROPY_REACH", 0.1),
        ),
    ],
}
