"""Slow, obvious NumPy: the formulas as they stand on paper, in float64, in two passes."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def class_means(features: Array, target: Labels, num_classes: int) -> Array:
    return np.stack([features[target == k].mean(axis=0) for k in range(num_classes)])


def within_class_covariance(features: Array, target: Labels, num_classes: int) -> Array:
    deviations = features - class_means(features, target, num_classes)[target]
    return deviations.T @ deviations / len(features)


def centred_means(features: Array, target: Labels, num_classes: int, between: str) -> tuple[Array, Array]:
    means = class_means(features, target, num_classes)
    if between == "classes":
        weights = np.full(num_classes, 1 / num_classes)
    else:
        weights = np.bincount(target, minlength=num_classes) / len(features)
    return means - weights @ means, weights


def between_class_covariance(features: Array, target: Labels, num_classes: int, between: str) -> Array:
    centred, weights = centred_means(features, target, num_classes, between)
    return (weights[:, None] * centred).T @ centred


def nc1(features: Array, target: Labels, num_classes: int, between: str = "classes") -> float:
    """tr(Sigma_W Sigma_B^+) along the directions of Sigma_B, of which there are min(K - 1, D)."""
    centred, weights = centred_means(features, target, num_classes, between)
    deviations = features - class_means(features, target, num_classes)[target]
    _, values, directions = np.linalg.svd(np.sqrt(weights)[:, None] * centred, full_matrices=False)
    rank = min(num_classes - 1, features.shape[1])
    along = deviations @ directions[:rank].T
    return float(((along**2).mean(axis=0) / values[:rank] ** 2).sum())


def trace_ratio(features: Array, target: Labels, num_classes: int, between: str = "classes") -> float:
    within = np.trace(within_class_covariance(features, target, num_classes))
    return float(within / np.trace(between_class_covariance(features, target, num_classes, between)))


def cdnv(features: Array, target: Labels, num_classes: int) -> float:
    means = class_means(features, target, num_classes)
    variances = [((features[target == k] - means[k]) ** 2).sum(axis=1).mean() for k in range(num_classes)]
    pairs = [(k, j) for k in range(num_classes) for j in range(num_classes) if k != j]
    return float(np.mean([(variances[k] + variances[j]) / (2 * ((means[k] - means[j]) ** 2).sum()) for k, j in pairs]))


def pair_cdnv(features: Array, target: Labels, num_classes: int) -> Array:
    found = np.full((num_classes, num_classes), np.nan)
    for k in set(target.tolist()):
        for j in set(target.tolist()) - {k}:
            own, other = features[target == k], features[target == j]
            spread = own.var(axis=0).sum() + other.var(axis=0).sum()
            found[k, j] = spread / (2 * ((own.mean(axis=0) - other.mean(axis=0)) ** 2).sum())
    return found


def pair_overlap(features: Array, target: Labels, num_classes: int) -> Array:
    """What chance would put between two means of one class, over what lies between these."""
    found = np.full((num_classes, num_classes), np.nan)
    for k in range(num_classes):
        for j in set(range(num_classes)) - {k}:
            own, other = features[target == k], features[target == j]
            if min(len(own), len(other)) > 1:
                noise = own.var(axis=0, ddof=1).sum() / len(own) + other.var(axis=0, ddof=1).sum() / len(other)
                found[k, j] = noise / ((own.mean(axis=0) - other.mean(axis=0)) ** 2).sum()
    return found


def class_spread(features: Array, target: Labels, num_classes: int) -> tuple[list[float], list[int]]:
    """Own spread over the squared distance to the nearest mean, and whose that is."""
    spreads, nearest = [float("nan")] * num_classes, [-1] * num_classes
    present = sorted(set(target.tolist()))
    for k in present:
        own = features[target == k]
        ways = {j: ((own.mean(axis=0) - features[target == j].mean(axis=0)) ** 2).sum() for j in present if j != k}
        nearest[k] = min(ways, key=ways.__getitem__)
        spreads[k] = float(own.var(axis=0).sum() / ways[nearest[k]])
    return spreads, nearest


def h_score(features: Array, target: Labels, num_classes: int) -> float:
    between = between_class_covariance(features, target, num_classes, "samples")
    total = within_class_covariance(features, target, num_classes) + between
    return float(np.trace(np.linalg.pinv(total, rcond=1e-12, hermitian=True) @ between))


def vci(features: Array, target: Labels, num_classes: int) -> float:
    rank = min(num_classes - 1, features.shape[1])
    return 1 - h_score(features, target, num_classes) / rank


def effective_rank(means: Array) -> float:
    values = np.linalg.eigvalsh(np.cov(means.T, bias=True))
    shares = values[values > 1e-12 * values.max()] / values[values > 1e-12 * values.max()].sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def nc2_equinorm(means: Array) -> float:
    lengths = np.linalg.norm(means - means.mean(axis=0), axis=1)
    return float(lengths.std() / lengths.mean())


def nc2_equiangle(means: Array) -> float:
    centred, classes = means - means.mean(axis=0), len(means)
    cosines = [
        centred[k] @ centred[j] / np.linalg.norm(centred[k]) / np.linalg.norm(centred[j])
        for k in range(classes)
        for j in range(classes)
        if k != j
    ]
    return float(np.mean([abs(cosine + 1 / (classes - 1)) for cosine in cosines]))


def frame_distance(product: Array, simplex: bool) -> float:
    classes = len(product)
    goal = (np.eye(classes) - 1 / classes) / np.sqrt(classes - 1) if simplex else np.eye(classes) / np.sqrt(classes)
    return float(np.linalg.norm(product / np.linalg.norm(product) - goal))


def ncc_decisions(features: Array, means: Array) -> Labels:
    return np.array([np.argmin([((sample - mean) ** 2).sum() for mean in means]) for sample in features])
