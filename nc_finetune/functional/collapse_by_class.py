"""Which classes do not collapse, and which pairs of them are closest."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nc_finetune.functional.class_statistics import ClassStatistics, class_statistics


class ClassCollapse(NamedTuple):
    """How far each class has collapsed, all float64 but the places.

    Attributes:
        spread: ``v_k / min_l |m_k - m_l|^2``, shape ``(K,)``, in ``[0, inf]``; v_k is the trace of class k's own
            covariance. 0 when collapsed, ``nan`` for a class without samples.
        nearest: Which l that is, shape ``(K,)``, int64; -1 where there is none.
    """

    spread: Tensor
    nearest: Tensor


def _squared_distances(means: Tensor) -> Tensor:
    return torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").square()


def class_spread(statistics: ClassStatistics) -> ClassCollapse:
    """Compare each class's own spread with the way to the nearest other class.

    Args:
        statistics: Sums of a pass.

    Returns:
        By class; see :func:`class_collapse`, which takes features.

    Example:
        >>> statistics = class_statistics(torch.tensor([[2.0], [4.0], [-2.0], [-4.0]]), torch.tensor([0, 0, 1, 1]))
        >>> class_spread(statistics).spread.round(decimals=4).tolist()  # 1 / 6^2
        [0.0278, 0.0278]
    """
    distances, absent = _squared_distances(statistics.means), statistics.counts == 0
    itself = torch.eye(len(absent), dtype=torch.bool, device=absent.device)
    smallest = distances.masked_fill(itself | absent, torch.inf).min(1)
    spread = statistics.spreads / statistics.counts / smallest.values
    alone = absent | smallest.values.isinf()
    return ClassCollapse(spread.masked_fill(alone, torch.nan), smallest.indices.masked_fill(alone, -1))


def class_collapse(features: Tensor, target: Tensor, num_classes: int | None = None) -> ClassCollapse:
    """Tell which classes have collapsed and which have not: own spread over the squared way to the nearest mean.

    Unlike NC1, a mean over classes, it names them. Both depend on the number of samples: compare at equal ones.

    Args:
        features: Shape ``(N, D)``, floating point.
        target: Shape ``(N,)``, integers in ``[0, K)``.
        num_classes: K; ``None`` takes the largest label plus one.

    Returns:
        Spread and nearest class by class. A class without samples has ``nan`` and -1, and is nobody's nearest; so has
        each where there is but one. Where a mean coincides with another the spread is infinite, or ``nan`` without any.

    Raises:
        ValueError: If the shapes do not fit or a label lies outside ``[0, K)``.

    Source:
        The ratio of one class of the CDNV of Galanti, György & Hutter 2022, arXiv:2112.15121.

    Example:
        >>> features = torch.tensor([[2.0], [4.0], [-2.0], [-4.0], [9.0]])
        >>> found = class_collapse(features, torch.tensor([0, 0, 1, 1, 2]))
        >>> found.spread.round(decimals=4).tolist(), found.nearest.tolist()
        ([0.0278, 0.0278, 0.0], [1, 0, 0])
    """
    return class_spread(class_statistics(features, target, num_classes))


def _on_both_sides(values: Tensor, number: int) -> Tensor:
    """Put values of pairs, in the order of ``torch.triu_indices``, into a matrix with ``nan`` on its diagonal."""
    found = values.new_full((number, number), torch.nan)
    first, second = torch.triu_indices(number, number, 1, device=values.device)
    found[first, second] = found[second, first] = values
    return found


def _ratios(by_class: Tensor, means: Tensor) -> Tensor:
    """Return ``(a_k + a_l) / |m_k - m_l|^2`` of pairs."""
    distances = _squared_distances(means)
    first, second = torch.triu_indices(len(distances), len(distances), 1, device=distances.device)
    return (by_class[first] + by_class[second]) / distances[first, second]


def pair_ratios(statistics: ClassStatistics) -> Tensor:
    """Return the class-distance normalised variance of pairs of classes in the order of ``torch.triu_indices``.

    Args:
        statistics: Sums of a pass.

    Returns:
        Shape ``(K (K - 1) / 2,)``; see :func:`pair_cdnv`.

    Example:
        >>> statistics = class_statistics(torch.tensor([[2.0], [4.0], [-2.0], [-4.0]]), torch.tensor([0, 0, 1, 1]))
        >>> pair_ratios(statistics).round(decimals=4).tolist()
        [0.0278]
    """
    return _ratios(statistics.spreads / statistics.counts / 2, statistics.means)


def pair_cdnv_of(statistics: ClassStatistics) -> Tensor:
    """Return the class-distance normalised variance of each pair of classes; see :func:`pair_cdnv`.

    Args:
        statistics: Sums of a pass.

    Example:
        >>> statistics = class_statistics(torch.tensor([[2.0], [4.0], [-2.0], [-4.0]]), torch.tensor([0, 0, 1, 1]))
        >>> pair_cdnv_of(statistics).round(decimals=4).tolist()
        [[nan, 0.0278], [0.0278, nan]]
    """
    return _on_both_sides(pair_ratios(statistics), len(statistics.counts))


def pair_cdnv(features: Tensor, target: Tensor, num_classes: int | None = None) -> Tensor:
    """Class-distance normalised variance of each pair of classes, ``(v_k + v_l) / (2 |m_k - m_l|^2)``.

    Pairs that are close for their spread have the largest; the mean over pairs is :func:`~nc_finetune.functional.cdnv`.

    Args:
        features: Shape ``(N, D)``, floating point.
        target: Shape ``(N,)``, integers in ``[0, K)``.
        num_classes: K; ``None`` takes the largest label plus one.

    Returns:
        Symmetric, shape ``(K, K)``, float64, in ``[0, inf]``; ``nan`` on the diagonal, for classes without samples and
        for two with one mean and no spread.

    Raises:
        ValueError: If the shapes do not fit or a label lies outside ``[0, K)``.

    Source:
        Galanti, György & Hutter 2022, On the role of neural collapse in transfer learning, arXiv:2112.15121.

    Example:
        >>> pair_cdnv(torch.tensor([[2.0], [4.0], [-2.0], [-4.0]]), torch.tensor([0, 0, 1, 1]))[0, 1].item()
        0.027...
    """
    return pair_cdnv_of(class_statistics(features, target, num_classes))


def pair_overlap(statistics: ClassStatistics) -> Tensor:
    """How far apart chance alone would put the means of two classes, over how far they are, squared.

    ``(u_k/n_k + u_l/n_l) / |m_k - m_l|^2`` with u_k the trace of class k's own covariance, divided by ``n_k - 1``: the
    numerator is what to expect of the denominator where both classes have one mean.

    Args:
        statistics: Sums of a pass.

    Returns:
        Symmetric, shape ``(K, K)``, float64, in ``[0, inf]``; about 1 and more where the samples do not tell two means
        apart; ``nan`` on the diagonal and for classes of fewer than two samples.

    Source:
        The trace of Hotelling 1931, The generalization of Student's ratio, 10.1214/aoms/1177732979, as for wide
        features in Dempster 1958, 10.1214/aoms/1177706437.

    Example:
        >>> statistics = class_statistics(torch.tensor([[2.0], [4.0], [-2.0], [-4.0]]), torch.tensor([0, 0, 1, 1]))
        >>> pair_overlap(statistics)[0, 1].item()  # (2/2 + 2/2) / 6^2
        0.055...
    """
    counts = statistics.counts
    noise = (statistics.spreads / (counts - 1)).masked_fill(counts < 2, torch.nan) / counts
    return _on_both_sides(_ratios(noise, statistics.means), len(counts))


def closest_pairs(cdnvs: Tensor, most: int) -> list[tuple[int, int, float]]:
    """List the pairs of classes with the largest CDNV, largest first.

    Args:
        cdnvs: Of :func:`pair_cdnv`, shape ``(K, K)``.
        most: How many at the most, at least 1.

    Returns:
        Both classes, the smaller number first, and their CDNV; pairs of which it is ``nan`` are left out.

    Example:
        >>> closest_pairs(torch.tensor([[torch.nan, 2.0, 5.0], [2.0, torch.nan, torch.nan], [5.0, torch.nan, 0]]), 5)
        [(0, 2, 5.0), (0, 1, 2.0)]
    """
    first, second = torch.triu_indices(len(cdnvs), len(cdnvs), 1, device=cdnvs.device)
    values = cdnvs[first, second]
    order = values.nan_to_num(-1.0, posinf=torch.inf).argsort(descending=True, stable=True)[:most]
    found = zip(first[order].tolist(), second[order].tolist(), values[order].tolist(), strict=True)
    return [pair for pair in found if pair[2] == pair[2]]
