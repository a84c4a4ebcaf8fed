"""Streaming class statistics: counts, class means and within-class scatter in one exact pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ClassStatistics(NamedTuple):
    """Everything that the collapse measures need to know about N features of K classes.

    Attributes:
        counts: Samples per class, shape ``(K,)``, float64.
        means: Class means ``m_k``, shape ``(K, D)``, float64; zero for a class without samples.
        scatter: Within-class scatter ``sum_i (h_i - m_{y_i})(h_i - m_{y_i})^T``, shape ``(D, D)``, float64.
    """

    counts: Tensor
    means: Tensor
    scatter: Tensor


def empty_class_statistics(
    num_classes: int, num_features: int, device: torch.device | str | None = None
) -> ClassStatistics:
    """Return the statistics of no samples at all, the start of a pass.

    Args:
        num_classes: K, at least 1.
        num_features: D, at least 1.
        device: Where the sums live.

    Returns:
        Zero counts, means and scatter.

    Example:
        >>> empty_class_statistics(3, 5).means.shape
        torch.Size([3, 5])
    """
    shapes = (num_classes,), (num_classes, num_features), (num_features, num_features)
    return ClassStatistics(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))


def update_class_statistics(statistics: ClassStatistics, features: Tensor, target: Tensor) -> ClassStatistics:
    """Add a batch to the statistics, exactly, whatever the grouping of samples into batches.

    With ``A`` the class means before the batch and ``B`` those after it, the scatter grows by
    ``(H - A[y])^T (H - B[y])`` (Welford 1962, 10.1080/00401706.1962.10490022, for batches of vectors). Both factors
    are deviations, so no digits cancel when the class means are far larger than the spread around them.

    Args:
        statistics: Sums so far.
        features: ``H``, shape ``(N, D)``, any floating dtype; accumulated in float64.
        target: ``y``, shape ``(N,)``, integers in ``[0, K)``. Values are not checked: that would need a
            device-to-host copy.

    Returns:
        New statistics; the argument is left as it was.

    Example:
        >>> import torch
        >>> sums = empty_class_statistics(2, 1)
        >>> sums = update_class_statistics(sums, torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]))
        >>> sums.counts.tolist(), sums.means.tolist(), sums.scatter.tolist()
        ([2.0, 1.0], [[2.0], [5.0]], [[2.0]])
    """
    counts, means, scatter = statistics
    features = features.to(means.dtype)
    new_counts = counts.index_add(0, target, torch.ones_like(target, dtype=counts.dtype))
    step = torch.zeros_like(means).index_add(0, target, features - means[target])
    new_means = means + step / new_counts.clamp(min=1).unsqueeze(1)
    # A class seen for the first time has no mean before the batch: its deviations are taken from the new mean twice.
    old_means = torch.where((counts > 0).unsqueeze(1), means, new_means)
    left, right = features - old_means[target], features - new_means[target]
    return ClassStatistics(new_counts, new_means, torch.addmm(scatter, left.T, right))


def merge_class_statistics(first: ClassStatistics, second: ClassStatistics) -> ClassStatistics:
    """Combine the statistics of two disjoint sets of samples (Chan, Golub & LeVeque 1983, 10.2307/2683386).

    Args:
        first: Statistics of one shard.
        second: Statistics of another shard, of the same K and D.

    Returns:
        The statistics of the union.

    Example:
        >>> import torch
        >>> def of(values):
        ...     return update_class_statistics(
        ...         empty_class_statistics(1, 1), torch.tensor(values)[:, None], torch.zeros(len(values), dtype=int)
        ...     )
        >>> merge_class_statistics(of([1.0]), of([3.0])).scatter
        tensor([[2.]], dtype=torch.float64)
    """
    counts = first.counts + second.counts
    offset = second.means - first.means
    share = (second.counts / counts.clamp(min=1)).unsqueeze(1)
    weight = (first.counts * second.counts / counts.clamp(min=1)).unsqueeze(1)
    scatter = first.scatter + second.scatter + (weight * offset).T @ offset
    return ClassStatistics(counts, first.means + share * offset, scatter)
