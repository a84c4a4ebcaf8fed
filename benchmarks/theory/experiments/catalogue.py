"""The experiments by name, in the order of the page; each is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.theory.core.experiment import Experiment
from nc_finetune.errors import unknown_name

EXPERIMENTS = (
    "unconstrained_features",
    "mse_closed_form",
    "strict_saddle",
    "feature_normalization",
    "extended_features",
    "multi_label",
    "residual_networks",
    "fixed_classifiers",
    "random_labels",
    "parsimony",
    "progressive_separation",
    "compressed_factors",
    "tensor_decomposition",
    "loss_landscape",
)


def find(name: str) -> Experiment[Any]:
    """Return the experiment of a name."""
    if name not in EXPERIMENTS:
        raise unknown_name("experiment", name, EXPERIMENTS)
    experiment: Experiment[Any] = importlib.import_module(f"benchmarks.theory.experiments.{name}").EXPERIMENT
    return experiment
