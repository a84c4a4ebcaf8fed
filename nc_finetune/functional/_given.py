"""Features and labels, or statistics, as formulas of class means and scatter take them: without empty classes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nc_finetune.functional._bases import Basis, GramBasis, ScatterBasis
from nc_finetune.functional._leave_one_out import leave_one_out_distances
from nc_finetune.functional.class_statistics import (
    ClassStatistics,
    as_labels,
    empty_class_statistics,
    update_class_statistics_,
    within_class_scatter,
)
from nc_finetune.functional.discriminant import check_classes, check_samples


class Given(NamedTuple):
    """Features and labels of the classes that have samples, with their statistics.

    Attributes:
        rows: Features, shape ``(N, D)``.
        labels: Among the classes that have samples, shape ``(N,)``.
        statistics: Of these classes.
        all_counts: Samples of every class, shape ``(K,)``.
    """

    rows: Tensor
    labels: Tensor
    statistics: ClassStatistics
    all_counts: Tensor

    @classmethod
    def of(
        cls,
        features: Tensor | ClassStatistics,
        target: Tensor | None,
        num_classes: int | None,
        samples: tuple[Tensor, Tensor] | None = None,
    ) -> Given:
        """Take features and target, or statistics and samples that are among them.

        Raises:
            ValueError: If they do not fit, or have no spread.
        """
        if isinstance(features, ClassStatistics):
            return cls._of_statistics(features, target, samples)
        if target is None or samples is not None:
            raise ValueError("features need a target, one label a sample, shape (N,), and no samples beside them")
        check_samples(features, target)
        classes = int(target.max()) + 1 if num_classes is None else num_classes
        labels = as_labels(target, features.new_zeros(classes))
        return cls._of_rows(features, labels, labels.bincount(minlength=classes).double())

    @classmethod
    def _of_rows(cls, rows: Tensor, labels: Tensor, counts: Tensor) -> Given:
        labels, present = _among_present(labels, counts)
        samples, width = rows.shape
        statistics = empty_class_statistics(int(present.sum()), width, rows.device, scatter=False)
        if samples > width:  # however wide: the scatter is smaller than the features
            statistics = statistics._replace(scatter=statistics.means.new_zeros(width, width))
        update_class_statistics_(statistics, rows, labels)
        check_classes(statistics)
        return cls(rows, labels, statistics, counts)

    @classmethod
    def _of_statistics(
        cls, statistics: ClassStatistics, target: Tensor | None, samples: tuple[Tensor, Tensor] | None
    ) -> Given:
        if target is not None:
            raise ValueError("statistics hold the labels already: give samples=(features, target), or no target")
        within_class_scatter(statistics)  # looks whether there is one
        counts, means, spreads, scatter = statistics
        rows, labels = samples or (means[:0], counts[:0].long())
        labels, present = _among_present(as_labels(labels, counts), counts)
        known = ClassStatistics(counts[present], means[present], spreads[present], scatter)
        check_classes(known)
        return cls(rows, labels, known, counts)

    def basis(self) -> Basis:
        """Decompose the scatter, or where there is none the Gram matrix."""
        if self.statistics.scatter is None:
            return GramBasis.of(self.rows, self.labels, self.statistics)
        return ScatterBasis.of(self.statistics)

    def without(self, shrinkage: float) -> Tensor:
        """Return squared distances to the class means, shape ``(N, K)``, each without the sample."""
        basis = self.basis()
        return leave_one_out_distances(basis.spectrum, basis.parts(self.rows, self.labels), self.labels, shrinkage)

    def as_one_class(self) -> Given:
        """Return the same as if all were of one class, whose scatter is that of all."""
        counts, means, spreads, scatter = self.statistics
        total = counts.sum().unsqueeze(0)
        centre = (counts @ means / total).unsqueeze(0)
        apart = (means - centre) * counts.sqrt().unsqueeze(1)
        if scatter is not None:
            scatter = scatter + apart.T @ apart
        statistics = ClassStatistics(total, centre, (spreads.sum() + apart.square().sum()).unsqueeze(0), scatter)
        return Given(self.rows, torch.zeros_like(self.labels), statistics, total)


def _among_present(labels: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Number labels among the classes that have samples, and tell which these are."""
    present = counts > 0
    return (present.cumsum(0) - 1)[labels], present
