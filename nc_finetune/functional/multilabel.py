"""Neural collapse of multi-label data: tag-wise means, and samples of several tags at their scaled average."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nc_finetune.functional.simplex_etf import nc2_etf_distance
from nc_finetune.functional.undefined import nan_like, warn_undefined


class MultilabelCollapse(NamedTuple):
    """How far multi-label features have collapsed; all scalars, float64, 0 when they have.

    Attributes:
        variability: Spread around the mean of each *set* of tags relative to the spread of those means,
            ``tr Sigma_W / tr Sigma_B`` over sets of tags, in ``[0, inf)``; ``nan`` where the means coincide.
        etf_distance: Distance of the tag-wise means, of the samples with one tag alone, from a simplex ETF; see
            :func:`~nc_finetune.functional.nc2_etf_distance`.
        scaled_average: Mean over the sets of several, but not all, tags of ``1 - cos`` of the angle between the mean
            of the set and the sum of the means of its tags, in ``[0, 2]``; ``nan`` without such a set, or
            where one of both vanishes.
    """

    variability: Tensor
    etf_distance: Tensor
    scaled_average: Tensor


def _check(features: Tensor, tags: Tensor) -> Tensor:
    """Return the tags as booleans, or refuse what is no multi-label data."""
    if not features.is_floating_point():
        raise ValueError(f"features must be floating point, got {features.dtype}")
    if features.ndim != 2 or tags.ndim != 2 or tags.shape[0] != features.shape[0]:
        raise ValueError(
            f"features must have shape (N, D) and tags (N, K), got {tuple(features.shape)} and {tuple(tags.shape)}"
        )
    present = tags != 0
    if (present & (tags != 1)).any():
        raise ValueError("tags must be 0 or 1")
    if not present.any(dim=1).all():
        raise ValueError("every sample must have at least one tag; leave untagged samples out")
    alone = present[present.sum(dim=1) == 1].any(dim=0)
    if missing := (~alone).nonzero().flatten().tolist():
        raise ValueError(
            f"every tag needs samples that have it alone, for its mean; tag {', '.join(map(str, missing))} has none"
        )
    return present


def _group_means(values: Tensor, group: Tensor, number: int) -> Tensor:
    sums = torch.zeros(number, values.shape[1], dtype=values.dtype, device=values.device)
    return sums.index_add(0, group, values) / group.bincount(minlength=number).unsqueeze(1)


def tag_means(features: Tensor, tags: Tensor) -> Tensor:
    """Mean of the samples that have one tag alone, tag by tag.

    Args:
        features: Shape ``(N, D)``, floating point.
        tags: Shape ``(N, K)``, 0 or 1.

    Returns:
        Shape ``(K, D)``, float64.

    Raises:
        ValueError: If the shapes do not fit, a sample has no tag, or a tag is never alone.

    Example:
        >>> import torch
        >>> tag_means(torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([[1, 0], [1, 0], [0, 1]])).tolist()
        [[2.0], [9.0]]
    """
    present = _check(features, tags)
    alone = present.sum(dim=1) == 1
    return _group_means(features.double()[alone], present[alone].int().argmax(dim=1), tags.shape[1])


def multilabel_collapse(features: Tensor, tags: Tensor) -> MultilabelCollapse:
    """Measure the collapse of multi-label features.

    With a pick-all-labels loss the samples of one tag collapse to a simplex ETF, and those of several tags to the
    scaled average of the means of their tags, however unbalanced the sets of several tags are.

    Args:
        features: Shape ``(N, D)``, floating point.
        tags: Shape ``(N, K)``, 0 or 1, K at least 2; every sample has a tag, every tag is somewhere alone.

    Returns:
        The three measures; what is undefined is ``nan``, with a warning that says why.

    Raises:
        ValueError: If the shapes do not fit, tags are not 0 or 1, a sample has no tag, or a tag is never alone.

    Source:
        Li et al. 2023, Neural collapse in multi-label learning with pick-all-label loss, arXiv:2310.15903.

    Example:
        >>> import torch
        >>> tags = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
        >>> simplex = torch.eye(3) - 1 / 3
        >>> [round(value.item(), 6) for value in multilabel_collapse(0.7 * tags.float() @ simplex, tags)]
        [0.0, 0.0, 0.0]
    """
    present = _check(features, tags)
    values = features.double()
    if not values.isfinite().all():
        warn_undefined("multi-label collapse", "the features are not finite")
        return MultilabelCollapse(*[nan_like(features)] * 3)
    sets, group = torch.unique(present, dim=0, return_inverse=True)
    means, tagwise = _group_means(values, group, len(sets)), tag_means(features, tags)
    within = (values - means[group]).square().sum() / len(values)
    between = (means - means.mean(dim=0)).square().sum() / len(sets)
    # Of the precision that the features came in.
    rounding = torch.finfo(features.dtype).eps * torch.linalg.vector_norm(means, dim=1).max()
    if between.sqrt() <= rounding:
        warn_undefined("multi-label collapse", "the means of all sets of tags coincide")
        return MultilabelCollapse(*[nan_like(features)] * 3)
    return MultilabelCollapse(
        within / between, nc2_etf_distance(tagwise), _scaled_average(sets, means, tagwise, rounding)
    )


def _scaled_average(sets: Tensor, means: Tensor, tagwise: Tensor, rounding: Tensor) -> Tensor:
    """Compare the means of sets of several tags with the sums of the means of their tags."""
    # The centred means of all tags together add up to nothing: that set has no direction to compare.
    several = (sets.sum(dim=1) > 1) & ~sets.all(dim=1)
    centre = tagwise.mean(dim=0)
    found, expected = means[several] - centre, sets[several].double() @ (tagwise - centre)
    lengths = torch.linalg.vector_norm(torch.stack([found, expected]), dim=2)
    if not several.any():
        warn_undefined("scaled average", "no sample has several, but not all, tags")
    elif (lengths <= rounding).any():
        warn_undefined("scaled average", "the mean of a set of tags, or of its tags, is the centre of all")
        return nan_like(means)
    distances: Tensor = 1 - (found * expected).sum(dim=1) / lengths.prod(dim=0)
    return distances.mean()
