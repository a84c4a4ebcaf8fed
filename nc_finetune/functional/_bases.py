"""The eigenvectors in which shrinking is arithmetic: of the scatter, or of the Gram matrix of the deviations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nc_finetune.functional._leave_one_out import Spectrum
from nc_finetune.functional.class_statistics import ClassStatistics, add_symmetric_product_

_CHUNK_ELEMENTS = 2**22  # 32 MiB in float64: bounds what is copied of the rows of features
# Of their columns so few that they stay in a core's cache, and so many that adding to the Gram matrix takes no time.
_CACHED_ELEMENTS, _MIN_COLUMNS = 2**19, 512


class Basis(Protocol):
    """What leave-one-out and the weight of a discriminant need to know."""

    @property
    def spectrum(self) -> Spectrum:
        """Eigenvalues, and the class means."""

    def parts(self, features: Tensor, target: Tensor) -> Iterator[Tensor]:
        """Give the deviations of the samples along the eigenvectors, in the order of the samples."""

    def weight(self, features: Tensor, target: Tensor, shrinkage: float) -> Tensor:
        """Return ``(m_k - m)^T inv(Sigma_s)``, shape ``(K, D)``."""

    def directions(self, features: Tensor, target: Tensor, most: int | None) -> Tensor:
        """Return the leading eigenvectors of the scatter, by falling eigenvalue, shape ``(D, R)``."""


class ScatterBasis(NamedTuple):
    """Eigenvectors of the scatter, shape ``(D, D)``, beside its spectrum and the class means, shape ``(K, D)``."""

    spectrum: Spectrum
    vectors: Tensor
    means: Tensor

    @classmethod
    def of(cls, statistics: ClassStatistics) -> ScatterBasis:
        """Decompose the scatter of statistics, of which the upper triangle is filled."""
        counts, means, _, scatter = statistics
        assert scatter is not None  # noqa: S101 - for the type
        values, vectors = torch.linalg.eigh(scatter, UPLO="U")
        values = torch.where(_above_rounding(values), values, 0)
        inside = (means - means.mean(0)) @ vectors
        beside = means.new_zeros(len(means), len(means))
        return cls(Spectrum(values, inside, beside, counts, means.shape[1]), vectors, means)

    def parts(self, features: Tensor, target: Tensor) -> Iterator[Tensor]:
        """Turn samples to the eigenvectors, some at a time."""
        rows = max(1, _CHUNK_ELEMENTS // len(self.vectors))
        for some, labels in zip(torch.split(features, rows), torch.split(target, rows), strict=True):
            yield some.to(self.means, copy=True).sub_(self.means[labels]) @ self.vectors

    def weight(self, features: Tensor, target: Tensor, shrinkage: float) -> Tensor:
        """Solve along the eigenvectors."""
        along, around = self.spectrum.shrunk(shrinkage)
        return self.spectrum.means / (along * self.spectrum.values + around) @ self.vectors.T

    def directions(self, features: Tensor, target: Tensor, most: int | None) -> Tensor:
        """Return those of eigenvalues above rounding."""
        found = int((self.spectrum.values > 0).sum())
        return self.vectors.flip(1)[:, : found if most is None else min(found, most)]


class GramBasis(NamedTuple):
    """Deviations of the samples along eigenvectors, shape ``(N, R)``, found from the Gram matrix; else as the other."""

    spectrum: Spectrum
    deviations: Tensor
    means: Tensor

    @classmethod
    def of(cls, features: Tensor, target: Tensor, statistics: ClassStatistics) -> GramBasis:
        """Decompose the Gram matrix of the deviations, which has the eigenvalues of the scatter."""
        counts, means, *_ = statistics
        centred = means - means.mean(0)
        gram, cross = means.new_zeros(len(target), len(target)), means.new_zeros(len(means), len(target))
        for columns, some in _deviations(features, target, means):
            add_symmetric_product_(gram, some.T, some.T)
            cross.addmm_(centred[:, columns], some.T)
        values, vectors = torch.linalg.eigh(gram, UPLO="U")
        kept = _above_rounding(values)
        values, vectors = values[kept], vectors[:, kept]
        inside = cross @ vectors / values.sqrt()
        beside = centred @ centred.T - inside @ inside.T
        return cls(Spectrum(values, inside, beside, counts, means.shape[1]), vectors.mul_(values.sqrt()), means)

    def parts(self, features: Tensor, target: Tensor) -> Iterator[Tensor]:
        """Give what is known."""
        yield self.deviations

    def weight(self, features: Tensor, target: Tensor, shrinkage: float) -> Tensor:
        """Solve by Woodbury's formula: the means themselves, less what they have along deviations."""
        along, around = self.spectrum.shrunk(shrinkage)
        inside = self.spectrum.means / (along * self.spectrum.values + around) @ self.deviations.T
        weight = self.means - self.means.mean(0)
        for columns, some in _deviations(features, target, self.means):
            weight[:, columns] -= along * inside @ some
        return weight / around

    def directions(self, features: Tensor, target: Tensor, most: int | None) -> Tensor:
        """Add up deviations along the eigenvectors of the Gram matrix."""
        shares = (self.deviations / self.spectrum.values).flip(1)[:, :most]
        vectors = self.means.new_empty(self.means.shape[1], shares.shape[1])
        for columns, some in _deviations(features, target, self.means):
            vectors[columns] = some.T @ shares
        return vectors


def _above_rounding(values: Tensor) -> Tensor:
    return values > values[-1] * len(values) * torch.finfo(values.dtype).eps


def _deviations(features: Tensor, target: Tensor, means: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Give deviations from the class means in float64, some columns at a time."""
    size = max(_MIN_COLUMNS, _CACHED_ELEMENTS // len(target))
    for start in range(0, features.shape[1], size):
        columns = slice(start, start + size)
        yield columns, features[:, columns].to(means, copy=True).sub_(means[:, columns][target])
