"""Streaming class statistics: counts, means, spreads and within-class scatter in one exact pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# A scatter of this many columns takes half a GiB. Wider features get none, and measures of them a second pass.
MAX_SCATTER_FEATURES = 8192
_CHUNK_ELEMENTS = 2**23  # 64 MiB in float64: bounds what an update takes beside the sums
_CACHED_ELEMENTS = 2**18  # without products, steps over rows that stay in a core's cache take a third of the time
_BLOCK = 128  # columns of the scatter that are multiplied at a time


class ClassStatistics(NamedTuple):
    """What the collapse measures need to know of N features of K classes. All float64, whatever the features are.

    Attributes:
        counts: Samples per class, shape ``(K,)``.
        means: Class means ``m_k``, shape ``(K, D)``; zero for a class without samples.
        spreads: ``sum_{i in k} |h_i - m_k|^2`` per class, shape ``(K,)``.
        scatter: Upper triangle of ``sum_i (h_i - m_{y_i})(h_i - m_{y_i})^T``, shape ``(D, D)``; below the blocks on
            its diagonal it is not filled, :func:`within_class_scatter` gives all of it. ``None`` for wide features.
    """

    counts: Tensor
    means: Tensor
    spreads: Tensor
    scatter: Tensor | None


def empty_class_statistics(
    num_classes: int, num_features: int, device: torch.device | str | None = None, *, scatter: bool = True
) -> ClassStatistics:
    """Return the statistics of no samples at all, the start of a pass.

    Args:
        num_classes: K, at least 1.
        num_features: D, at least 1. Above ``MAX_SCATTER_FEATURES`` (8,192) there is no scatter.
        device: Where the sums live.
        scatter: Whether there is to be a scatter where the features are not too wide for it.

    Returns:
        Zeros: 8 (2 K + K D + D^2) bytes, or 8 (2 K + K D) without scatter.

    Example:
        >>> empty_class_statistics(3, 5).means.shape
        torch.Size([3, 5])
    """

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=device)

    square = zeros(num_features, num_features) if scatter and num_features <= MAX_SCATTER_FEATURES else None
    return ClassStatistics(zeros(num_classes), zeros(num_classes, num_features), zeros(num_classes), square)


def update_class_statistics(statistics: ClassStatistics, features: Tensor, target: Tensor) -> ClassStatistics:
    """Add a batch to the statistics, exactly, whatever the grouping of samples into batches.

    With ``A`` the class means before the batch and ``B`` those after it, the scatter grows by
    ``(H - A[y])^T (H - B[y])`` (Welford 1962, 10.1080/00401706.1962.10490022, for batches of vectors). Both factors
    are deviations, so no digits cancel when the class means are far larger than the spread around them.

    Differentiable in ``features``. Everything is computed in float64, which no TF32 or autocast setting touches:
    products in float32 would take half the time, but lose digits of NC1 where the class means are nearly dependent,
    since it weighs the scatter along directions in which it may be a millionth of its largest.

    Args:
        statistics: Sums so far.
        features: ``H``, shape ``(N, D)``, any floating dtype.
        target: ``y``, shape ``(N,)``, integers in ``[0, K)``.

    Returns:
        New statistics; the argument is left as it was.

    Raises:
        ValueError: If a label lies outside ``[0, K)``; on an accelerator, where looking would wait for the device,
            that is the device's own error.

    Example:
        >>> import torch
        >>> sums = empty_class_statistics(2, 1)
        >>> sums = update_class_statistics(sums, torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]))
        >>> sums.counts.tolist(), sums.means.tolist(), sums.spreads.tolist(), sums.scatter.tolist()
        ([2.0, 1.0], [[2.0], [5.0]], [2.0, 0.0], [[2.0]])
    """
    copied = ClassStatistics(*(None if value is None else value.clone() for value in statistics))  # type: ignore[arg-type]
    update_class_statistics_(copied, features, target)
    return copied


def update_class_statistics_(statistics: ClassStatistics, features: Tensor, target: Tensor) -> None:
    """Add a batch in place; see :func:`update_class_statistics`. Makes no device-to-host copy.

    Args:
        statistics: Sums so far; changed.
        features: Shape ``(N, D)``.
        target: Shape ``(N,)``.

    Raises:
        ValueError: As above.

    Example:
        >>> import torch
        >>> sums = empty_class_statistics(2, 1)
        >>> update_class_statistics_(sums, torch.ones(3, 1), torch.tensor([0, 0, 1]))
        >>> sums.counts.tolist()
        [2.0, 1.0]
    """
    labels = as_labels(target, statistics.counts)
    elements = _CACHED_ELEMENTS if statistics.scatter is None else _CHUNK_ELEMENTS
    for chunk, chunk_labels in row_chunks(features, labels, elements):
        _add_batch_(statistics, chunk, chunk_labels)


def as_labels(target: Tensor, counts: Tensor) -> Tensor:
    """Return labels as int64, or refuse those of no class before anything is changed; makes no device-to-host copy.

    Args:
        target: Shape ``(N,)``, of any integer dtype.
        counts: Anything of shape ``(K,)``.

    Raises:
        ValueError: If a label lies outside ``[0, K)``; on an accelerator that is the device's own error.

    Example:
        >>> as_labels(torch.tensor([1, 0], dtype=torch.uint8), torch.zeros(2))
        tensor([1, 0])
    """
    labels = target.long()  # the smaller dtypes index nothing, and uint8 would be taken for a mask
    try:
        counts.index_select(0, labels)
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"labels must be integers in [0, {counts.numel()}): {error}") from error
    return labels


def row_chunks(features: Tensor, target: Tensor, elements: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Split a batch so that copies of a part in float64 stay small, however large the batch is.

    Args:
        features: Shape ``(N, D)``.
        target: Shape ``(N,)``.
        elements: At most about as many at a time; ``None`` takes 2^23, 64 MiB in float64.

    Yields:
        Rows of both.
    """
    rows = max(1, (_CHUNK_ELEMENTS if elements is None else elements) // features.shape[1])
    for start in range(0, len(target), rows):
        yield features[start : start + rows], target[start : start + rows]


def _add_batch_(statistics: ClassStatistics, features: Tensor, target: Tensor) -> None:
    counts, means, spreads, scatter = statistics
    unseen = (counts == 0).to(counts.dtype).index_select(0, target).unsqueeze(1)
    counts.index_add_(0, target, torch.ones_like(target, dtype=counts.dtype))
    deviations = features.to(means.dtype)
    before = deviations - means.index_select(0, target)
    means.index_add_(0, target, before * counts.reciprocal().index_select(0, target).unsqueeze(1))
    after = deviations - means.index_select(0, target)
    # A class seen for the first time has no mean before the batch: its deviations are from the new mean twice.
    before = torch.lerp(before, after, unseen)
    spreads.index_add_(0, target, (before * after).sum(dim=1))
    if scatter is not None:
        add_symmetric_product_(scatter, before, after)


def add_symmetric_product_(upper: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the upper triangle of ``left^T right``, known to be symmetric, block by block: half the multiplications.

    Args:
        upper: Shape ``(D, D)``; changed, and below the blocks on its diagonal left as it is.
        left: Shape ``(N, D)``.
        right: Shape ``(N, D)``.

    Example:
        >>> import torch
        >>> upper = torch.zeros(2, 2)
        >>> add_symmetric_product_(upper, torch.ones(3, 2), torch.ones(3, 2))
        >>> upper.triu().tolist()
        [[3.0, 3.0], [0.0, 3.0]]
    """
    for start in range(0, upper.shape[0], _BLOCK):
        upper[start : start + _BLOCK, start:].addmm_(left[:, start : start + _BLOCK].T, right[:, start:])


def spread_along(statistics: ClassStatistics, directions: Tensor) -> Tensor:
    """Sum the squared deviations from the class means along directions, ``tr(P^T S P)`` with S the scatter.

    Args:
        statistics: Sums of a pass, with a scatter.
        directions: P, shape ``(D, R)``.

    Returns:
        ``sum_i |P^T (h_i - m_{y_i})|^2``, a scalar.

    Example:
        >>> import torch
        >>> sums = class_statistics(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([0, 0]))
        >>> spread_along(sums, torch.tensor([[1.0], [0.0]], dtype=torch.float64)).item()
        2.0
    """
    upper, total = _scatter_of(statistics), directions.new_zeros(())
    for start in range(0, len(directions), _BLOCK):
        end = start + _BLOCK
        own, later = upper[start:end, start:end] @ directions[start:end], upper[start:end, end:] @ directions[end:]
        total = total + ((own + 2 * later) * directions[start:end]).sum()
    return total


def _scatter_of(statistics: ClassStatistics) -> Tensor:
    if statistics.scatter is None:
        raise ValueError(
            f"features of width {statistics.means.shape[1]} have no scatter: it is kept up to {MAX_SCATTER_FEATURES};"
            " pool the features, or ask for measures that need none"
        )
    return statistics.scatter


def within_class_scatter(statistics: ClassStatistics) -> Tensor:
    """Return the within-class scatter, both triangles filled.

    Args:
        statistics: Sums of a pass.

    Returns:
        ``sum_i (h_i - m_{y_i})(h_i - m_{y_i})^T = N Sigma_W``, shape ``(D, D)``.

    Raises:
        ValueError: If the features are too wide to have one.

    Example:
        >>> within_class_scatter(empty_class_statistics(2, 3)).shape
        torch.Size([3, 3])
    """
    scatter = _scatter_of(statistics)
    return torch.triu(scatter) + torch.triu(scatter, 1).T


def merge_class_statistics(first: ClassStatistics, second: ClassStatistics) -> ClassStatistics:
    """Combine the statistics of two disjoint sets of samples (Chan, Golub & LeVeque 1983, 10.2307/2683386).

    Args:
        first: Statistics of one shard.
        second: Statistics of another shard, of the same K and D.

    Returns:
        The statistics of the union.

    Raises:
        ValueError: If they are of other classes or features.

    Example:
        >>> import torch
        >>> def of(values):
        ...     target = torch.zeros(len(values), dtype=int)
        ...     return update_class_statistics(empty_class_statistics(1, 1), torch.tensor(values)[:, None], target)
        >>> merge_class_statistics(of([1.0]), of([3.0])).scatter
        tensor([[2.]], dtype=torch.float64)
    """
    if first.means.shape != second.means.shape:
        shapes = tuple(first.means.shape), tuple(second.means.shape)
        raise ValueError(f"only statistics of equally many classes and features merge, got means of {shapes}")
    total = (first.counts + second.counts).clamp(min=1).unsqueeze(1)
    offset = second.means - first.means
    means = first.means + offset * second.counts.unsqueeze(1) / total
    shift = offset * (first.counts * second.counts).unsqueeze(1) / total
    spreads = first.spreads + second.spreads + (shift * offset).sum(dim=1)
    scatter = None
    if first.scatter is not None and second.scatter is not None:
        scatter = first.scatter + second.scatter
        add_symmetric_product_(scatter, shift, offset)
    return ClassStatistics(first.counts + second.counts, means, spreads, scatter)


def sum_class_statistics(statistics: ClassStatistics, all_sum: Callable[[Tensor], Tensor]) -> ClassStatistics:
    """Combine the statistics of all ranks: Chan's formula for many shards, each adding its own correction.

    No rank ever holds more than one set of sums beside its own, however many ranks there are.

    Args:
        statistics: Sums of this rank; may be those of no samples.
        all_sum: Returns the sum of a tensor over all ranks, leaving its argument alone.

    Returns:
        The statistics of the union, on every rank.

    Example:
        >>> import torch
        >>> sums = empty_class_statistics(1, 1)
        >>> update_class_statistics_(sums, torch.tensor([[2.0], [4.0]]), torch.zeros(2, dtype=int))
        >>> sum_class_statistics(sums, lambda value: 2 * value).scatter  # two ranks that saw the same
        tensor([[4.]], dtype=torch.float64)
    """
    own, means, spreads, scatter = statistics
    counts = all_sum(own)
    merged = all_sum(means * (own / counts.clamp(min=1)).unsqueeze(1))
    offset = means - merged
    weighted = offset * own.unsqueeze(1)
    spreads = all_sum(spreads + (weighted * offset).sum(dim=1))
    if scatter is not None:
        scatter = scatter.clone()
        add_symmetric_product_(scatter, weighted, offset)
        scatter = all_sum(scatter)
    return ClassStatistics(counts, merged, spreads, scatter)


def class_statistics(features: Tensor, target: Tensor, num_classes: int | None = None) -> ClassStatistics:
    """Compute the statistics of features that are all at hand.

    Args:
        features: Shape ``(N, D)``, floating point.
        target: Shape ``(N,)``, integers in ``[0, K)``.
        num_classes: K; ``None`` takes the largest label plus one.

    Returns:
        The statistics.

    Raises:
        ValueError: If the shapes do not fit, there are no samples, or a label lies outside ``[0, K)``.

    Example:
        >>> import torch
        >>> class_statistics(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1])).means.tolist()
        [[1.0], [3.0]]
    """
    check_features(features, target)
    if target.numel() == 0:
        raise ValueError("at least one sample is needed, got none")
    target = target.long()
    num_classes = int(target.max()) + 1 if num_classes is None else num_classes
    if target.min() < 0 or target.max() >= num_classes:
        raise ValueError(f"labels must lie in [0, {num_classes}), got {int(target.min())} to {int(target.max())}")
    return update_class_statistics(
        empty_class_statistics(num_classes, features.shape[1], features.device), features, target
    )


def check_features(features: Tensor, target: Tensor, num_features: int | None = None) -> None:
    """Refuse what is not one feature vector and one label a sample.

    Args:
        features: Should have shape ``(N, D)`` and a floating dtype.
        target: Should have shape ``(N,)`` and an integer dtype.
        num_features: D, where it is known.

    Raises:
        ValueError: If they have not.
    """
    width = "D" if num_features is None else num_features
    fits = features.ndim == 2 and num_features in (None, features.shape[1]) and target.shape == features.shape[:1]
    fits = fits and features.shape[1] > 0
    if not fits:
        raise ValueError(
            f"features must have shape (N, {width}) and target (N,), got {tuple(features.shape)} and"
            f" {tuple(target.shape)}; pool maps and tokens to one vector per sample first"
        )
    if not features.is_floating_point() or target.is_floating_point() or target.is_complex():
        raise ValueError(f"features must be floating point and target integers, got {features.dtype}, {target.dtype}")
