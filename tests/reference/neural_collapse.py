"""Slow, obvious NumPy: the formulas as they stand on paper."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def class_means(features: Array, target: NDArray[np.int64], num_classes: int) -> Array:
    return np.stack([features[target == k].mean(axis=0) for k in range(num_classes)])


def within_class_covariance(features: Array, target: NDArray[np.int64], num_classes: int) -> Array:
    means = class_means(features, target, num_classes)
    deviations = features - means[target]
    return deviations.T @ deviations / len(features)


def between_class_covariance(features: Array, target: NDArray[np.int64], num_classes: int, between: str) -> Array:
    means = class_means(features, target, num_classes)
    if between == "classes":
        weights = np.full(num_classes, 1 / num_classes)
    else:
        weights = np.bincount(target, minlength=num_classes) / len(features)
    centred = means - weights @ means
    return (weights[:, None] * centred).T @ centred


def nc1(features: Array, target: NDArray[np.int64], num_classes: int, between: str = "classes") -> float:
    """tr(Sigma_W Sigma_B^+) with the rank of Sigma_B known to be min(K - 1, D) at most."""
    within = within_class_covariance(features, target, num_classes)
    values, vectors = np.linalg.eigh(between_class_covariance(features, target, num_classes, between))
    kept = np.argsort(values)[::-1][: min(num_classes - 1, features.shape[1])]
    return float(sum(vectors[:, j] @ within @ vectors[:, j] / values[j] for j in kept))
