"""Distances of features from what the training images are like: under the covariance within classes, and of all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nc_finetune.functional._given import Given
from nc_finetune.functional.class_statistics import ClassStatistics
from nc_finetune.functional.discriminant import checked_shrinkages
from nc_finetune.functional.gaussians import ClassGaussians, DistanceFrame
from nc_finetune.functional.gaussians import class_gaussians as class_gaussians


class LeftOutDistances(NamedTuple):
    """Squared distances of samples, each by what all the others give; ``nan`` for the only one of its class.

    Attributes:
        classes: To the class means, shape ``(N, K)``; infinite for a class without samples.
        overall: To the mean of all, under the covariance of all, shape ``(N,)``.
    """

    classes: Tensor
    overall: Tensor

    @property
    def nearest(self) -> Tensor:
        """To the nearest class mean, shape ``(N,)``."""
        return self.classes.amin(1)

    @property
    def relative(self) -> Tensor:
        """To the nearest class mean, less that to the mean of all, shape ``(N,)``; see :func:`relative_mahalanobis`."""
        return self.nearest - self.overall


def mahalanobis(features: Tensor, gaussians: ClassGaussians) -> Tensor:
    """Square the Mahalanobis distance of features to each class mean, ``(z - m_k)^T inv(Sigma_s) (z - m_k)``.

    That to the nearest one, ``.amin(1)``, tells images from elsewhere. Of a sample that the classes were described by
    it is too small, the more so the fewer there are: :func:`left_out_distances` gives what a new one would have.

    Args:
        features: z, shape ``(N, D)``.
        gaussians: Of the classes.

    Returns:
        Not negative, shape ``(N, K)``, in the type of the description; infinite for a class without samples.

    Raises:
        ValueError: If features are not as wide as those of the classes.

    Source:
        Mahalanobis 1936; as a score: Lee et al. 2018, arXiv:1807.03888.

    Example:
        >>> features = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
        >>> found = class_gaussians(features, torch.tensor([0, 0, 1, 1]), shrinkage=0.5)
        >>> mahalanobis(torch.tensor([[4.0]]), found)  # a variance of 1
        tensor([[ 9., 49.]], dtype=torch.float64)
    """
    return DistanceFrame.of(gaussians).distances(features)[0]


def relative_mahalanobis(features: Tensor, gaussians: ClassGaussians) -> Tensor:
    """Square the Mahalanobis distance to the nearest class mean, less that to the mean of all images.

    The latter is under ``Sigma_T,s``, the covariance of all, shrunk likewise. What all images share then counts little,
    and what tells classes apart counts more: for images of a class of the same kind that nobody has named.

    Args:
        features: z, shape ``(N, D)``.
        gaussians: Of the classes.

    Returns:
        Of either sign, shape ``(N,)``; high for what is strange.

    Raises:
        ValueError: As :func:`mahalanobis`.

    Source:
        Ren et al. 2021, A simple fix to Mahalanobis distance, arXiv:2106.09022.

    Example:
        >>> features = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
        >>> found = class_gaussians(features, torch.tensor([0, 0, 1, 1]), shrinkage=0.5)
        >>> relative_mahalanobis(torch.tensor([[4.0]]), found).item()  # 9 - 4 / 26: the variance of all is 26
        8.846...
    """
    classes, overall = DistanceFrame.of(gaussians).distances(features)
    return classes.amin(1) - overall


def left_out_distances(
    features: Tensor | ClassStatistics,
    target: Tensor | None = None,
    *,
    shrinkage: float,
    num_classes: int | None = None,
    samples: tuple[Tensor, Tensor] | None = None,
) -> LeftOutDistances:
    """Measure samples as if each were new: means and covariances are those of all the others, exactly.

    By rank-one downdates, as for :func:`~nc_finetune.functional.linear_discriminant`, at two eigendecompositions: of
    the scatter within classes, and of that of all. In float64; where ``N <= D`` of Gram matrices.

    Args:
        features: Shape ``(N, D)``; or the statistics of a pass, with a scatter.
        target: Shape ``(N,)``, integers in ``[0, K)``; none beside statistics.
        shrinkage: s in ``(0, 1]``.
        num_classes: K; ``None`` takes the largest label plus one.
        samples: Beside statistics, features and target of samples that are among them: they are measured.

    Returns:
        The distances, with all eigenvectors; ``nan`` for a sample that is the only one of its class, or without which
        no class has two.

    Raises:
        ValueError: As :func:`class_gaussians`; if statistics come without samples.

    Example:
        >>> features = torch.tensor([[0.0], [2.0], [4.0], [10.0], [12.0], [14.0]])
        >>> found = left_out_distances(features, torch.tensor([0, 0, 0, 1, 1, 1]), shrinkage=0.5)
        >>> found.nearest[:3]  # without 0 the mean is 3 and the variance 2
        tensor([4.5000, 0.0000, 4.5000], dtype=torch.float64)
    """
    (s,) = checked_shrinkages(shrinkage)
    given = Given.of(features, target, num_classes, samples)
    if isinstance(features, ClassStatistics) and samples is None:
        raise ValueError("statistics alone have no samples to leave out: give samples=(features, target)")
    classes = given.without(s)
    found = classes.new_full((len(classes), len(given.all_counts)), torch.inf)
    found[:, given.all_counts > 0] = classes
    counts = given.statistics.counts
    several = (counts > 1).sum() - ((counts > 1) & (counts < 3))[given.labels].long()
    alone = classes.isnan().any(1) | (several < 1)
    found[alone] = torch.nan
    overall = torch.where(alone, torch.nan, given.as_one_class().without(s)[:, 0])
    return LeftOutDistances(found.clamp(min=0), overall.clamp(min=0))
