"""Which backbone to take: scores of many, on the user's data, by forward passes alone."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from nc_finetune.backbones import Backbone, create_backbone
from nc_finetune.data import ImageData
from nc_finetune.functional import cdnv, h_score, nc1, ncc_accuracy, vci
from nc_finetune.functional.class_statistics import class_statistics
from nc_finetune.functional.nearest_class_center import agreement, classifier_decisions
from nc_finetune.functional.readout import MAX_CHOICE_SAMPLES, choose_columns
from nc_finetune.methods import FinetuningMethod, LayerReadout, LinearProbe
from nc_finetune.selection.device import best_device
from nc_finetune.selection.features import (
    fit_probe,
    method_features,
    require_one_label,
    require_validation,
    subset_batches,
)
from nc_finetune.selection.logme import logme

_FEWEST = 5  # backbones, for a rank correlation
# The measures with the sign that makes higher better.
MEASURES: dict[str, int] = {
    "nc1": -1,
    "vci": -1,
    "cdnv": -1,
    "h_score": 1,
    "logme": 1,
    "ncc_accuracy": 1,
    "probe_accuracy": 1,
    "readout_accuracy": 1,
}


@dataclass(frozen=True, kw_only=True)
class BackboneScores:
    """What the frozen penultimate features of a backbone say of the data.

    Attributes:
        name: Name of the backbone.
        weights: The weights that were asked for.
        parameters: Number of parameters.
        num_features: Width of the penultimate feature, D.
        nc1: ``tr(Sigma_W Sigma_B^+)`` of the training images; lower is better.
        vci: Variability collapse index of the training images; lower is better. It is 0 for every backbone whose D is
            not below N - K: as H-score, it needs more images than features.
        cdnv: Class-distance normalised variance of the training images; lower is better.
        h_score: H-score of the training images; higher is better.
        logme: LogME of the training images, mean over the classes that they have; higher is better.
        ncc_accuracy: Share of validation images nearest to the training mean of their class.
        probe_accuracy: Share of validation images that a linear probe recognises.
        readout_accuracy: Share of training images, of up to 2,000, that the others recognise by the outputs of the
            later half of the blocks: leave-one-out accuracy of :class:`~nc_finetune.methods.LayerReadout`. ``nan``
            where blocks cannot be pooled, or no class has two images.
        seconds: What it took.
        error: Why there are no scores.
    """

    name: str
    weights: str | None
    parameters: int = 0
    num_features: int = 0
    nc1: float = float("nan")
    vci: float = float("nan")
    cdnv: float = float("nan")
    h_score: float = float("nan")
    logme: float = float("nan")
    ncc_accuracy: float = float("nan")
    probe_accuracy: float = float("nan")
    readout_accuracy: float = float("nan")
    seconds: float = 0.0
    error: str | None = None


def score_features(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], num_classes: int) -> dict[str, float]:
    """Compute every measure from features.

    Args:
        train: Features ``(N, D)`` and labels ``(N,)`` that the measures are of.
        val: Features and labels that nearest-class-centre and probe are judged on.
        num_classes: K.

    Returns:
        The measures by name.
    """
    features, labels = train
    means = class_statistics(features, labels, num_classes).means
    probe = fit_probe(features, labels, num_classes)
    with torch.no_grad():
        recognised = classifier_decisions(val[0], probe.weight, probe.bias)
    return {
        "nc1": nc1(features, labels, num_classes).item(),
        "vci": vci(features, labels, num_classes).item(),
        "cdnv": cdnv(features, labels, num_classes).item(),
        "h_score": h_score(features, labels, num_classes).item(),
        "logme": logme(features, labels, num_classes),
        "ncc_accuracy": ncc_accuracy(*val, means).item(),
        "probe_accuracy": (agreement(recognised, val[1]) / len(val[1])).item(),
    }


def score_backbone(
    name: str,
    weights: str | None,
    data: ImageData,
    max_images: int | None = 5000,
    build: Callable[[str, str | None], Backbone] = create_backbone,
) -> BackboneScores:
    """Score one backbone; one that cannot be had or run is a result, too.

    Args:
        name: As for :func:`~nc_finetune.backbones.create_backbone`.
        weights: Likewise.
        data: Train and validation split; the test split is not touched.
        max_images: Of each split, but at least two of every class; ``None`` is all.
        build: Builds the backbone.

    Returns:
        The scores, or the error.

    Raises:
        ValueError: If images have several labels, the validation split is empty, or ``max_images`` is below 1.
    """
    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images must be at least 1, or None for all, got {max_images}")
    require_one_label(data, "scores of backbones")
    require_validation(data, "scores of backbones")
    start = time.perf_counter()
    try:
        backbone = build(name, weights).to(best_device())
        seen = _seen(backbone)
        layers, labels = method_features(seen, backbone, subset_batches(data, "train", max_images))
        val = method_features(LinearProbe(), backbone, subset_batches(data, "val", max_images))
        scores = score_features((layers[:, -backbone.num_features :], labels), val, data.num_classes)
        scores["readout_accuracy"] = _readout_accuracy(layers, labels, data.num_classes, seen, backbone)
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        message = f"{type(error).__name__}: {error}"
        return BackboneScores(name=name, weights=weights, error=message, seconds=time.perf_counter() - start)
    return BackboneScores(
        name=name,
        weights=weights,
        parameters=sum(value.numel() for value in backbone.parameters()),
        num_features=backbone.num_features,
        seconds=time.perf_counter() - start,
        **scores,  # type: ignore[arg-type]
    )


def _seen(backbone: Backbone) -> FinetuningMethod:
    """Return what takes the outputs of later blocks beside the feature; that alone, where they cannot be pooled."""
    method = LayerReadout("later_half", normalize=False)
    try:
        method.pieces(backbone)
    except ValueError:
        return LinearProbe()
    return method


def _readout_accuracy(
    layers: Tensor, labels: Tensor, num_classes: int, method: FinetuningMethod, backbone: Backbone
) -> float:
    """Leave one image out after the other."""
    if not isinstance(method, LayerReadout):
        return float("nan")
    try:
        features = method.normalized(backbone, layers)
        found = choose_columns(
            features, labels, num_classes, {"all": slice(None)}, "all", max_samples=MAX_CHOICE_SAMPLES
        )
    except ValueError:  # no class has two images, or all of each class are the same
        return float("nan")
    return found.accuracies["all"]


def ranked(scores: Sequence[BackboneScores], by: str = "probe_accuracy") -> list[BackboneScores]:
    """Sort backbones from best to worst by a measure; those without a value come last.

    Args:
        scores: Of the backbones.
        by: One of ``MEASURES``.

    Returns:
        The same, sorted.
    """

    def key(found: BackboneScores) -> float:
        value = MEASURES[by] * float(getattr(found, by))
        return value if value == value else float("-inf")

    return sorted(scores, key=key, reverse=True)


def correlations(
    scores: Sequence[BackboneScores], accuracy: Mapping[tuple[str, str | None], float]
) -> dict[str, float]:
    """Correlate every measure with the accuracy of fine-tuning, where that is known: Spearman, higher is better.

    Args:
        scores: Of the backbones.
        accuracy: Measured accuracy by name and weights of the backbone.

    Returns:
        The rank correlation by measure; empty, with a warning, for fewer than five backbones with both, which any two
        measures order alike by chance.
    """
    measured = {network: value for network, value in accuracy.items() if math.isfinite(value)}
    known = [found for found in scores if found.error is None and (found.name, found.weights) in measured]
    if len(known) < _FEWEST:
        warnings.warn(
            f"no rank correlation: {len(known)} backbones with a measured accuracy are too few, at least {_FEWEST} are"
            " needed",
            stacklevel=2,
        )
        return {}
    truth = torch.tensor([accuracy[found.name, found.weights] for found in known], dtype=torch.float64)
    result = {}
    for name, sign in MEASURES.items():
        values = sign * torch.tensor([getattr(found, name) for found in known], dtype=torch.float64)
        if values.isfinite().all() and values.min() < values.max() and truth.min() < truth.max():
            result[name] = round(spearman_corrcoef(values, truth).item(), 3)
    return result


FIELDS = tuple(field.name for field in fields(BackboneScores))
