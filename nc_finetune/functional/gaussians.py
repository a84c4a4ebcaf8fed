"""Classes as Gaussians of one shrunk covariance, and the basis in which distances to them are short sums."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nc_finetune.functional._given import Given
from nc_finetune.functional._leave_one_out import shrunk
from nc_finetune.functional.class_statistics import ClassStatistics
from nc_finetune.functional.discriminant import checked_shrinkages

_ROUNDING = 1e-9  # of the longest class mean: what is shorter beside the eigenvectors is their rounding


class ClassGaussians(NamedTuple):
    """Classes as Gaussians of one covariance: means, and the scatter by its leading eigenvectors.

    Attributes:
        counts: Samples per class, shape ``(K,)``; a class without any has no distance.
        means: Class means, shape ``(K, D)``.
        vectors: Eigenvectors of the scatter, the leading ones first, shape ``(D, R)``.
        values: Their eigenvalues, shape ``(R,)``.
        rest: Eigenvalue of every other direction, a scalar: the mean of those that are not kept.
        shrinkage: s, a scalar in ``(0, 1]``.
    """

    counts: Tensor
    means: Tensor
    vectors: Tensor
    values: Tensor
    rest: Tensor
    shrinkage: Tensor


def class_gaussians(
    features: Tensor | ClassStatistics,
    target: Tensor | None = None,
    *,
    shrinkage: float,
    num_classes: int | None = None,
    rank: int | None = None,
) -> ClassGaussians:
    """Describe classes by their means and the shrunk covariance within them, for :func:`mahalanobis`.

    ``Sigma_s = (1 - s) Sigma_W + s tr(Sigma_W) / D I``. Of the scatter at most ``rank`` eigenvectors are kept; all
    other directions get the mean of the eigenvalues that are dropped, as in probabilistic PCA (Tipping & Bishop 1999,
    10.1111/1467-9868.00196). That keeps trace and leading directions, and loses what tells the other directions apart.
    Without a rank, or where the scatter has no more eigenvalues, distances are exact.

    Args:
        features: z, shape ``(N, D)``, floating point; or the statistics of a pass, with a scatter.
        target: Shape ``(N,)``, integers in ``[0, K)``; none beside statistics.
        shrinkage: s in ``(0, 1]``.
        num_classes: K; ``None`` takes the largest label plus one.
        rank: The most eigenvectors to keep; ``None`` keeps all.

    Returns:
        The description, float64.

    Raises:
        ValueError: If shapes do not fit, there is no sample, samples coincide with the means of their classes, features
            are not finite, a label, the shrinkage or the rank is out of range, or statistics have no scatter.

    Example:
        >>> features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 5.0], [2.0, 5.0]])
        >>> found = class_gaussians(features, torch.tensor([0, 0, 1, 1]), shrinkage=1.0)
        >>> DistanceFrame.of(found).distances(torch.tensor([[1.0, 1.0]]))[0]  # Sigma_1 = I / 2
        tensor([[ 2.0000, 32.0000]], dtype=torch.float64)
    """
    (s,) = checked_shrinkages(shrinkage)
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, or None for all eigenvectors, got {rank}")
    given = Given.of(features, target, num_classes)
    basis, width = given.basis(), given.statistics.means.shape[1]
    vectors = basis.directions(given.rows, given.labels, rank)
    values = basis.spectrum.values
    kept = values.flip(0)[: vectors.shape[1]]
    rest = (values.sum() - kept.sum()).clamp(min=0) / max(1, width - len(kept))
    if len(kept) == int((values > 0).sum()):
        rest = torch.zeros_like(rest)
    counts, means = given.all_counts, given.statistics.means.new_zeros(len(given.all_counts), width)
    means[counts > 0] = given.statistics.means
    return ClassGaussians(counts, means, vectors, kept, rest, values.new_tensor(s))


class DistanceFrame(NamedTuple):
    """What :func:`mahalanobis` and :func:`relative_mahalanobis` need, so that a feature is turned to a basis once.

    Attributes:
        centre: Mean of the class means, shape ``(D,)``.
        basis: Orthonormal, of the eigenvectors and what class means have beside them, shape ``(D, Q)``.
        within: Inverse standard deviations along it, shape ``(Q,)``.
        means: Of the classes along it, over these deviations, shape ``(K, Q)``; infinite for a class without samples.
        total: To the eigenvectors of the covariance of all, over its deviations, shape ``(Q, Q)``.
        overall: The mean of all there, shape ``(Q,)``.
        beside: Inverse variances of what is beside the basis, within classes and of all, shape ``(2,)``; zero where
            the basis is complete.
    """

    centre: Tensor
    basis: Tensor
    within: Tensor
    means: Tensor
    total: Tensor
    overall: Tensor
    beside: Tensor

    @classmethod
    def of(cls, gaussians: ClassGaussians) -> DistanceFrame:
        """Prepare a description of classes; computed in float64, returned in its type."""
        counts, means, vectors, values, rest, shrinkage = (part.double() for part in gaussians)
        present = counts > 0
        counts, s, (width, rank) = counts[present], float(shrinkage), vectors.shape
        centre = means[present].mean(0)
        centred = means[present] - centre
        basis = torch.cat([vectors, _beside(centred, vectors)], dim=1)
        inside = centred @ basis
        spread = torch.cat([values, rest.expand(basis.shape[1] - rank)])
        within, around = shrunk(spread.sum() + rest * (width - basis.shape[1]), counts.sum(), width, s)
        overall = counts @ inside / counts.sum()
        apart = inside - overall
        scatter = torch.diag(spread) + apart.T @ (counts.unsqueeze(1) * apart)
        trace = scatter.diagonal().sum() + rest * (width - basis.shape[1])
        _, around_all = shrunk(trace, counts.sum(), width, s)
        found, turned = torch.linalg.eigh(scatter)
        total = turned / (within * found.clamp(min=0) + around_all).sqrt()
        scales = (within * spread + around).rsqrt()
        scaled = torch.full((len(present), len(scales)), torch.inf, dtype=scales.dtype, device=scales.device)
        scaled[present] = inside * scales
        beside = torch.stack([within * rest + around, within * rest + around_all]).reciprocal()
        beside = beside * (basis.shape[1] < width)
        made = cls(centre, basis, scales, scaled, total, overall @ total, beside)
        return cls(*(part.to(gaussians.means.dtype) for part in made))

    def distances(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared distances to the class means, shape ``(N, K)``, and to the mean of all, shape ``(N,)``.

        Raises:
            ValueError: If features are not as wide as those of the classes.
        """
        if features.ndim != 2 or features.shape[1] != len(self.centre):
            raise ValueError(
                f"features must have shape (N, {len(self.centre)}), as those that the classes were described by, got"
                f" {tuple(features.shape)}"
            )
        deviations = features.to(self.centre.dtype) - self.centre
        along = deviations @ self.basis
        left = (deviations.square().sum(1) - along.square().sum(1)).clamp(min=0)
        overall = (along @ self.total - self.overall).square().sum(1) + left * self.beside[1]
        scaled, known = along * self.within, self.means.isfinite().all(1)
        means = torch.where(known.unsqueeze(1), self.means, 0)
        # Not as differences, which would be N x K x Q numbers.
        lengths = scaled.square().sum(1, keepdim=True) + means.square().sum(1)
        classes = (lengths - 2 * scaled @ means.T).clamp(min=0) + left.unsqueeze(1) * self.beside[0]
        return torch.where(known, classes, torch.inf), overall


def _beside(means: Tensor, vectors: Tensor) -> Tensor:
    """Return an orthonormal basis of what centred means have beside orthonormal vectors, shape ``(D, B)``."""
    left = means - means @ vectors @ vectors.T
    left = left - left @ vectors @ vectors.T  # once more: rounding
    _, lengths, found = torch.linalg.svd(left, full_matrices=False)
    kept: Tensor = found[lengths > _ROUNDING * means.norm(dim=1).amax()].T
    return kept
