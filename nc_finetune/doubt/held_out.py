"""Distances of training images as if each were new, by a description of classes that keeps few eigenvectors."""

from __future__ import annotations

import torch
from torch import Tensor

from nc_finetune.functional.class_statistics import (
    ClassStatistics,
    empty_class_statistics,
    update_class_statistics_,
)
from nc_finetune.functional.gaussians import ClassGaussians, DistanceFrame
from nc_finetune.functional.mahalanobis import left_out_distances

FOLDS, _ENOUGH = 10, 500  # images, after which no further fold is looked at
_BESIDE, _POWERS = 16, 2  # of the range finder


def held_out_distances(
    features: Tensor, target: Tensor, num_classes: int, shrinkage: float, rank: int, folds: Tensor | None = None
) -> Tensor:
    """Measure images, each against what others give: the nearest class mean, and less the mean of all.

    Where ``rank`` eigenvectors are all that there are, each by all the others, exactly. Otherwise leaving one out is no
    downdate, since the eigenvectors lean towards every image: each tenth of the images, until there are 500, is
    measured by the other nine, whose leading eigenvectors are those of a randomised decomposition.

    Args:
        features: Shape ``(N, D)``.
        target: Shape ``(N,)``.
        num_classes: K.
        shrinkage: s.
        rank: Eigenvectors that are kept.
        folds: Which images are held out together, shape ``(N,)``, numbers from 0 on, or -1 for one that never is: where
            some images, as copies, must not judge each other. ``None`` leaves one out, or tenths.

    Returns:
        Squared and relative distances, shape ``(2, N)``; ``nan`` for the only image of its class, and where nobody has
        looked.

    Raises:
        ValueError: As :func:`~nc_finetune.functional.class_gaussians`.
    """
    counts = target.bincount(minlength=num_classes)
    if folds is None and rank >= min(len(target) - int((counts > 0).sum()), features.shape[1]):
        exact = left_out_distances(features, target, shrinkage=shrinkage, num_classes=num_classes)
        return torch.stack([exact.nearest, exact.relative])
    found = torch.full((2, len(target)), torch.nan, dtype=torch.float64, device=features.device)
    folds, most = (_folds(target), _ENOUGH) if folds is None else (folds, len(target))
    looked = 0
    for fold in range(int(folds.amax()) + 1):
        inside = folds == fold
        others = target[~inside].bincount(minlength=num_classes)
        inside = inside & (others[target] > 0)
        if not inside.any() or not (others > 1).any():
            continue
        given = _leading(features[folds != fold], target[folds != fold], num_classes, shrinkage, rank)
        classes, overall = DistanceFrame.of(given).distances(features[inside])
        nearest = classes.amin(1)
        found[:, inside] = torch.stack([nearest, nearest - overall])
        looked += int(inside.sum())
        if looked >= most:
            break
    return found


def distances_of(gaussians: ClassGaussians, features: Tensor) -> Tensor:
    """Measure images that are not among those of a description: squared and relative distances, shape ``(2, N)``."""
    classes, overall = DistanceFrame.of(gaussians).distances(features)
    nearest = classes.amin(1)
    return torch.stack([nearest, nearest - overall])


def _folds(target: Tensor) -> Tensor:
    """Deal the images of each class out to folds in turn, in their order, classes one after another."""
    order = target.argsort(stable=True)
    folds = torch.empty_like(target)
    folds[order] = torch.arange(len(target), device=target.device) % FOLDS
    return folds


def _leading(features: Tensor, target: Tensor, num_classes: int, shrinkage: float, rank: int) -> ClassGaussians:
    """Describe classes as :func:`~nc_finetune.functional.class_gaussians` does, by a randomised decomposition."""
    statistics = _means(features, target, num_classes)
    deviations = features - statistics.means[target].to(features)
    with torch.random.fork_rng(devices=[features.device] if features.is_cuda else []):
        torch.manual_seed(0)
        size = min(rank + _BESIDE, *deviations.shape)
        _, lengths, vectors = torch.svd_lowrank(deviations, size, _POWERS)
    values = lengths.double().square()[:rank]
    rest = (statistics.spreads.sum() - values.sum()).clamp(min=0) / max(1, features.shape[1] - len(values))
    s = values.new_tensor(shrinkage)
    return ClassGaussians(statistics.counts, statistics.means, vectors[:, :rank].double(), values, rest, s)


def _means(features: Tensor, target: Tensor, num_classes: int) -> ClassStatistics:
    statistics = empty_class_statistics(num_classes, features.shape[1], features.device, scatter=False)
    update_class_statistics_(statistics, features, target)
    return statistics
