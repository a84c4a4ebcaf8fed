"""Slow, obvious NumPy: the losses as they stand on paper, sample by sample."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SampleLoss = Callable[[Array, int], float]


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())


def focal(logits: Array, label: int, gamma: float) -> float:
    p = softmax(logits)[label]
    return float(-((1 - p) ** gamma) * np.log(p))


def rescaled_mse(logits: Array, label: int, alpha: float, target: float) -> float:
    errors = [
        alpha * (value - target) ** 2 if index == label else value**2 for index, value in enumerate(logits.tolist())
    ]
    return float(np.mean(errors))


def dot_regression(logits: Array, label: int, alpha: float) -> float:
    return float((logits[label] - alpha) ** 2 / (2 * alpha))


def pick_all_labels(logits: Array, tags: Array, average: bool, weight: Array) -> float:
    losses = [-weight[k] * np.log(softmax(logits)[k]) for k in np.flatnonzero(tags)]
    return float(np.mean(losses) if average else np.sum(losses))


def weighted_mean(loss: SampleLoss, logits: Array, labels: list[int], weight: Array) -> float:
    total = sum(weight[label] * loss(row, label) for row, label in zip(logits, labels, strict=True))
    return float(total / sum(weight[label] for label in labels))
