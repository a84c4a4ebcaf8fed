"""Scores of a frozen feature that are said to foretell how a network transfers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from nc_finetune.data import ImageData
from nc_finetune.functional import cdnv, h_score, nc1
from nc_finetune.methods import LinearProbe
from nc_finetune.run.specs import BackboneSpec
from nc_finetune.selection.device import best_device
from nc_finetune.selection.features import method_features, subset_batches
from nc_finetune.selection.logme import logme

# With the sign that makes higher better. NCTI is relative to the other networks and comes last, see `with_ncti`.
SCORES = {"NC1": -1, "CDNV": -1, "H-score": 1, "LogME": 1, "SFDA": 1}
NCTI_PARTS = ("seli", "ncc", "vc")
_LEAST = 1e-10  # shrinkage below which NCTI takes none
_LEAST_OF_SFDA = 1e-6  # 1e-10 of the authors leaves nothing to invert where there are fewer images than features


def ncti_parts(features: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the three parts of NCTI, which is a sum over networks that are compared.

    Args:
        features: Shape ``(N, D)``.
        labels: Shape ``(N,)``, every class among them.

    Returns:
        ``seli``, the nuclear norm of discriminant features; ``ncc``, the mean probability of the true class by the
        discriminant; ``vc``, the log of the summed nuclear norms of each class's probabilities, lower being better.

    Source:
        Wang et al. 2023, How far pre-trained models are from neural collapse on the target dataset informs their
        transferability, ICCV, with the choices of the authors' code: 64 principal components, shrinkage by variance.
    """
    parts = PCA(n_components=min(64, *features.shape), random_state=0)
    reduced = parts.fit_transform(features)
    shrinkage = max(float(np.exp(-parts.explained_variance_[:32].sum())), _LEAST)
    plain = {"solver": "svd"} if shrinkage == _LEAST else {"solver": "eigen", "shrinkage": shrinkage}
    discriminant = LinearDiscriminantAnalysis(**plain)
    projected = discriminant.fit_transform(reduced, labels)
    probabilities = discriminant.predict_proba(reduced)
    places = np.searchsorted(discriminant.classes_, labels)
    by_class = (np.linalg.norm(probabilities[labels == label], ord="nuc") for label in discriminant.classes_)
    return {
        "seli": float(np.linalg.norm(projected - projected.mean(axis=0), ord="nuc")),
        "ncc": float(probabilities[np.arange(len(labels)), places].mean()),
        "vc": float(np.log(sum(by_class))),
    }


def with_ncti(parts: list[dict[str, float]]) -> list[float]:
    """Add up the parts of several networks, each scaled to the range from 0 to 1 over these.

    Example:
        >>> with_ncti([{"seli": 1.0, "ncc": 0.5, "vc": 2.0}, {"seli": 3.0, "ncc": 0.7, "vc": 1.0}])
        [0.0, 3.0]
    """
    columns = np.array([[part["seli"], part["ncc"], -part["vc"]] for part in parts])
    spread = np.ptp(columns, axis=0)
    scaled = (columns - columns.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    return [float(value) for value in scaled.sum(axis=1)]


def sfda(features: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the mean probability of the true class by a shrunk discriminant, once images lean to other classes.

    Args:
        features: Shape ``(N, D)``.
        labels: Shape ``(N,)``, every class among them.

    Returns:
        A number in ``[0, 1]``, higher is better.

    Source:
        Shao et al. 2022, Not all models are equal: predicting model transferability in a self-challenging Fisher
        space, arXiv:2207.03036: shrinkage by the largest eigenvalue of the scatter within classes, then images mixed
        with the mean of the other classes as they are doubtful (ConfMix), and the discriminant solved again.
    """
    classes, places = np.unique(labels, return_inverse=True)
    means = np.stack([features[labels == label].mean(axis=0) for label in classes])
    others = np.stack([features[labels != label].mean(axis=0) for label in classes])
    within = features - means[places]
    largest = float(np.linalg.norm(within, ord=2) ** 2 / len(features))
    shrinkage = min(1.0, max(float(np.exp(-5 * largest)), _LEAST_OF_SFDA))

    def true_probability(points: NDArray[np.float64]) -> NDArray[np.float64]:
        fitted = LinearDiscriminantAnalysis(solver="eigen", shrinkage=shrinkage).fit(points, labels)
        scores = softmax(fitted.predict_proba(points), axis=1) if points is features else fitted.predict_proba(points)
        return np.asarray(scores[np.arange(len(labels)), places])

    trust = true_probability(features)[:, None]
    return float(true_probability(trust * features + (1 - trust) * others[places]).mean())


@torch.no_grad()
def score(network: BackboneSpec, data: ImageData) -> dict[str, float]:
    """Return every score of the penultimate feature of the training images.

    Args:
        network: With its weights.
        data: Whose training images are looked at; validation and test images are not.
    """
    backbone = network.build(network.weights).to(best_device())
    features, labels = method_features(LinearProbe(), backbone, subset_batches(data, "train"))
    return scores_of(features.cpu().double(), labels.cpu(), data.num_classes)


def scores_of(features: Tensor, labels: Tensor, num_classes: int) -> dict[str, float]:
    """Return every score of features ``(N, D)`` with labels ``(N,)``, those of SCORES and the parts of NCTI."""
    given = (features, labels, num_classes)
    points, targets = features.numpy(), labels.numpy()
    return {
        "NC1": nc1(*given).item(),
        "CDNV": cdnv(*given).item(),
        "H-score": h_score(*given).item(),
        "LogME": logme(*given),
        "SFDA": sfda(points, targets),
        **ncti_parts(points, targets),
    }
