"""Penultimate features of data, and a linear probe on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from nc_finetune.backbones import Backbone
from nc_finetune.data import ImageData
from nc_finetune.data.labelled_images import SkippingLoader, collate
from nc_finetune.data.splits.stratified import draw_stratified
from nc_finetune.functional.logistic_regression import logistic_path
from nc_finetune.methods import FinetuningMethod

_TOLERANCE = 1e-5


def require_one_label(data: ImageData, what: str) -> None:
    """Refuse images with several labels, whose features the measures of a choice do not compare.

    Args:
        data: Where the images come from.
        what: What needs them, a plural.

    Raises:
        ValueError: If they have several labels each.
    """
    if data.multi_label:
        raise ValueError(
            f"{what} compare images with one label each, those of {data.source!r} have several; compare by a benchmark"
            " of every block or backbone instead"
        )


def require_validation(data: ImageData, what: str) -> None:
    """Refuse data without validation images where something is judged by them.

    Args:
        data: Where the images come from.
        what: What needs them, a plural.

    Raises:
        ValueError: If there are none.
    """
    if not len(data.val_set):
        raise ValueError(
            f"{what} are judged on the validation split, and that of {data.source!r} is empty; hold images out"
            " (val_size above 0), or choose by folds of the training images where that is offered"
        )


def subset_batches(data: ImageData, split: str, number: int | None = None, seed: int = 0) -> DataLoader[Any]:
    """Return batches of some images of a split, drawn at random, with every class among them, without augmentation.

    Args:
        data: Where the images come from.
        split: ``"train"`` or ``"val"``.
        number: How many images; more where two of each class are, or all that it has; ``None`` is all.
        seed: Which of them.

    Returns:
        A loader of ``(images, labels)``.
    """
    workers, images = data.eval_dataloader(split).num_workers, data.images(split)
    drawn = images if number is None else Subset(images, draw_stratified(images.labels, number, seed).tolist())
    return SkippingLoader(drawn, batch_size=data.batch_size, num_workers=workers, collate_fn=collate)


@contextmanager
def gradients_forgotten(backbone: Backbone) -> Iterator[None]:
    """Leave a network afterwards without gradients, and as frozen as it was."""
    flags = {parameter: parameter.requires_grad for parameter in backbone.parameters()}
    try:
        yield
    finally:
        backbone.zero_grad()
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


@torch.no_grad()
def method_features(
    method: FinetuningMethod, backbone: Backbone, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return what a classifier would see of the images, in eval mode.

    Args:
        method: Decides which features reach the classifier.
        backbone: The network.
        batches: Images and labels.

    Returns:
        Features ``(N, D)`` and labels ``(N,)``.
    """
    device = next(backbone.parameters()).device
    backbone.eval()
    method.eval()
    found = [(method.features(backbone, images.to(device)).float(), labels.to(device)) for images, labels in batches]
    return torch.cat([part for part, _ in found]), torch.cat([part for _, part in found])


def fit_probe(features: Tensor, labels: Tensor, num_classes: int, weight_decay: float = 1e-2) -> nn.Linear:
    """Fit a linear classifier by L-BFGS: multinomial logistic regression with a penalty on the weights.

    Features are standardised for the fit, and the scales folded into the weights, so that one penalty fits all
    backbones. It is deterministic.

    Args:
        features: Shape ``(N, D)``.
        labels: Shape ``(N,)``.
        num_classes: K.
        weight_decay: Factor of half the squared norm of the weights.

    Returns:
        The classifier, on the device of the features.

    Raises:
        ValueError: If the features are not finite, or a label is out of range.

    Example:
        >>> features = torch.tensor([[0.0, 5.0], [1.0, 5.0], [4.0, 5.0], [5.0, 5.0]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> fit_probe(features, labels, 2)(features).argmax(1).tolist()
        [0, 0, 1, 1]
    """
    mean, scale = features.mean(0), features.std(0, unbiased=False)
    scale = torch.where(scale > 1e-6 * (1 + mean.abs()), scale, torch.ones_like(scale))
    inputs = ((features - mean) / scale).detach()
    # The path has penalties in units of the mean square of all features, which is 1 unless some never change.
    penalty = weight_decay / (float(inputs.square().mean()) or 1.0)
    (fit,) = logistic_path(inputs, labels, num_classes, [penalty], tolerance=_TOLERANCE)
    weight = fit.weight / scale
    probe = nn.Linear(inputs.shape[1], num_classes, device=inputs.device)
    with torch.no_grad():
        probe.weight.copy_(weight)
        probe.bias.copy_(fit.bias - weight @ mean)
    return probe
