"""The linear discriminant of class means and shrunk within-class covariance, with exact leave-one-out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nc_finetune.errors import check_name
from nc_finetune.functional._bases import Basis, GramBasis, ScatterBasis
from nc_finetune.functional._leave_one_out import Priors as Priors
from nc_finetune.functional._leave_one_out import leave_one_out, log_priors, shrunk
from nc_finetune.functional.class_statistics import (
    MAX_SCATTER_FEATURES,
    ClassStatistics,
    as_labels,
    check_features,
    empty_class_statistics,
    update_class_statistics_,
    within_class_scatter,
)
from nc_finetune.functional.temperature import temperature
from nc_finetune.functional.undefined import named

Criterion = Literal["accuracy", "log_likelihood"]
# From hardly any shrinkage to the nearest class mean, in steps of the odds s / (1 - s): where there are fewer samples
# than features the best lies close to 1.
_ODDS = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
SHRINKAGES = (*(odds / (1 + odds) for odds in _ODDS), 1.0)


class LinearDiscriminant(NamedTuple):
    """A classifier in closed form; ``features @ weight.T + bias`` are its logits. All float64.

    Attributes:
        weight: ``(m_k - m)^T inv(Sigma_s)``, shape ``(K, D)``.
        bias: Shape ``(K,)``.
        shrinkage: s, in ``(0, 1]``.
        leave_one_out_logits: Logits of each sample given by the discriminant of all the others, shape ``(N, K)``;
            ``nan`` for one without which its class has no sample, or no class a spread. ``None`` where there were only
            statistics.
        leave_one_out_accuracy: Share of right ones among those that have logits, a scalar; ``None`` likewise.
        path: Leave-one-out log-likelihoods of the shrinkages that were tried, by shrinkage, or accuracies where they
            were the criterion; empty where one was given.
    """

    weight: Tensor
    bias: Tensor
    shrinkage: float
    leave_one_out_logits: Tensor | None
    leave_one_out_accuracy: Tensor | None
    path: dict[float, float]


def linear_discriminant(
    features: Tensor | ClassStatistics,
    target: Tensor | None = None,
    shrinkage: float | Sequence[float] | None = None,
    *,
    num_classes: int | None = None,
    priors: Priors = "equal",
    samples: tuple[Tensor, Tensor] | None = None,
    criterion: Criterion = "log_likelihood",
) -> LinearDiscriminant:
    """Classify by class means ``m_k`` and the within-class covariance, shrunk towards a multiple of the identity.

    ``logit_k = (m_k - m)^T inv(Sigma_s) (z - m) - 1/2 (m_k - m)^T inv(Sigma_s) (m_k - m)`` with m the mean of the class
    means and ``Sigma_s = (1 - s) Sigma_W + s tr(Sigma_W) / D I`` (Fisher 1936, 10.1111/j.1469-1809.1936.tb02137.x;
    shrinkage: Friedman 1989, 10.1080/01621459.1989.10478752). Beside a term that all classes share these are the
    decision values of scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s)``.

    Leave-one-out is exact: mean and scatter of the sample's own class, the trace and the count are downdated, by
    Sherman and Morrison's formula on one eigendecomposition that serves every s. It is taken of the scatter, or of the
    Gram matrix of the deviations where ``N <= D``: ``O(M^3)`` once, M = min(N, D), beside ``O(N D M)`` for products and
    ``O(N M K)`` for each of S shrinkages. Features are read in pieces, never copied: beside them it takes about
    ``32 M^2`` bytes while it decomposes, later ``16 M^2 + 8 S N K``, and 0.3 GiB of pieces. Weight and bias are
    differentiable in ``features`` for a given s; with a gradient the features are copied and kept.

    Where features come in a stream that is not kept, give the statistics of all and some of the samples: leave-one-out
    is exact for each of these.

    Args:
        features: z, shape ``(N, D)``, floating point; or the statistics of a pass, with a scatter.
        target: Shape ``(N,)``, integers in ``[0, K)``; none beside statistics.
        shrinkage: s in ``(0, 1]``, or several to choose from by leave-one-out, of equal ones the largest; ``None``
            chooses from :data:`SHRINKAGES`.
        num_classes: K; ``None`` takes the largest label plus one.
        priors: ``"equal"``, or ``"counts"`` for those of the samples.
        samples: Beside statistics, features and target of samples that are among them, all or some: leave-one-out is of
            these. Of others it would be wrong.
        criterion: What is best: the highest mean log-likelihood after one :func:`temperature` for each s, or the
            highest accuracy, which few samples hardly tell apart.

    Returns:
        The discriminant.

    Raises:
        ValueError: If a class has no sample, samples of all classes coincide with their means, a feature is not finite,
            a label or a shrinkage is out of range, statistics have no scatter, or there is nothing to choose a
            shrinkage by: statistics alone, or so few samples that without one of them nothing is left.

    Example:
        >>> features = torch.tensor([[0.0, 0.0], [1.0, 0.1], [0.0, 3.0], [1.0, 3.1]])
        >>> found = linear_discriminant(features, torch.tensor([0, 0, 1, 1]), shrinkage=0.1)
        >>> (features.double() @ found.weight.T + found.bias).argmax(1).tolist()
        [0, 0, 1, 1]
        >>> found.leave_one_out_accuracy.item()
        1.0
    """
    tried = checked_shrinkages(shrinkage)
    check_name("priors", priors, get_args(Priors))
    check_name("criterion", criterion, get_args(Criterion))
    if isinstance(features, ClassStatistics):
        if target is not None:
            raise ValueError("statistics hold the labels already: give samples=(features, target), or no target")
        return _of_statistics(features, samples, tried, priors, criterion)
    if target is None or samples is not None:
        raise ValueError("features need a target, one label a sample, shape (N,), and no samples beside them")
    check_samples(features, target)
    return _of_samples(features, target.long(), num_classes, tried, priors, criterion)


def checked_shrinkages(shrinkage: float | Sequence[float] | None) -> tuple[float, ...]:
    """Return the shrinkages to try.

    Raises:
        ValueError: If one is out of range, or there is none.
    """
    given: Any = SHRINKAGES if shrinkage is None else shrinkage
    tried = tuple(map(float, given)) if isinstance(given, list | tuple) else (float(given),)
    if not tried or not all(0 < value <= 1 for value in tried):
        raise ValueError(f"shrinkage must lie in (0, 1], got {shrinkage}")
    return tuple(dict.fromkeys(tried))


def check_samples(features: Tensor, target: Tensor, num_features: int | None = None) -> None:
    """Refuse what :func:`~nc_finetune.functional.class_statistics.check_features` does, and none, and not finite ones.

    Raises:
        ValueError: With what is wrong.
    """
    check_features(features, target, num_features)
    if len(target) == 0:
        raise ValueError("at least one sample is needed, got none")
    if target.min() < 0:
        raise ValueError(f"labels must be integers from 0 on, got {int(target.min())}")
    # Both are nan if any feature is; looking at each would take as much memory as the features.
    if not torch.stack(features.detach().aminmax()).isfinite().all():
        raise ValueError("features must be finite, got nan or infinity")


def check_classes(statistics: ClassStatistics) -> None:
    """Refuse statistics of which some class has no sample, or none a spread, or that are not finite.

    Raises:
        ValueError: With what is wrong.
    """
    if (missing := statistics.counts == 0).any():
        raise ValueError(f"every class needs a sample, but there is none of class {named(missing)}; leave it out")
    if not (finite := statistics.spreads.isfinite()).all():
        raise ValueError(f"features must be finite, got nan or infinity in class {named(~finite)}")
    # Rounding leaves a spread of this size where samples are the same.
    rounding = torch.finfo(statistics.means.dtype).eps * statistics.counts.amax() * statistics.means.abs().amax()
    if not statistics.spreads.sum() > rounding.square() * statistics.means.shape[1] * statistics.counts.sum():
        raise ValueError("samples coincide with the mean of their class: there is no within-class covariance")


def _of_statistics(
    statistics: ClassStatistics,
    samples: tuple[Tensor, Tensor] | None,
    tried: Sequence[float],
    priors: Priors,
    criterion: Criterion,
) -> LinearDiscriminant:
    if statistics.scatter is None:
        raise ValueError(
            f"statistics of width {statistics.means.shape[1]} without a scatter, which is kept up to"
            f" {MAX_SCATTER_FEATURES}, have no discriminant: give all samples as features and target, or fewer features"
        )
    check_classes(statistics)
    if samples is not None:
        features, target = samples
        check_samples(features, target, statistics.means.shape[1])
        target = as_labels(target.to(statistics.counts.device), statistics.counts)
        return _found(features, target, statistics, tried, priors, criterion)
    if len(tried) > 1:
        raise ValueError(
            "statistics alone choose no shrinkage: leave-one-out needs samples=(features, target); give some, or one s"
        )
    weight = _solved(within_class_scatter(statistics), None, statistics, tried[0])
    return LinearDiscriminant(weight, _bias(weight, statistics, priors), tried[0], None, None, {})


def _of_samples(
    features: Tensor,
    target: Tensor,
    num_classes: int | None,
    tried: Sequence[float],
    priors: Priors,
    criterion: Criterion,
) -> LinearDiscriminant:
    samples, width = features.shape
    classes = int(target.max()) + 1 if num_classes is None else num_classes
    statistics = empty_class_statistics(classes, width, features.device, scatter=False)
    if samples > width:  # however wide: the scatter is smaller than the features
        statistics = statistics._replace(scatter=statistics.means.new_zeros(width, width))
    update_class_statistics_(statistics, features, target)
    check_classes(statistics)
    return _found(features, target, statistics, tried, priors, criterion)


def _found(
    features: Tensor,
    target: Tensor,
    statistics: ClassStatistics,
    tried: Sequence[float],
    priors: Priors,
    criterion: Criterion,
) -> LinearDiscriminant:
    scatter = statistics.scatter
    with torch.no_grad():
        basis: Basis = GramBasis.of(features, target, statistics) if scatter is None else ScatterBasis.of(statistics)
        logits = leave_one_out(basis.spectrum, basis.parts(features, target), target, tried, priors)
        chosen, path = _chosen(logits, target, criterion)
        found = logits[chosen]
        if not statistics.means.requires_grad:
            weight = basis.weight(features, target, chosen)
    if statistics.means.requires_grad:
        deviations = features.to(statistics.means) - statistics.means[target] if scatter is None else None
        product = within_class_scatter(statistics) if deviations is None else deviations @ deviations.T
        weight = _solved(product, deviations, statistics, chosen)
    return LinearDiscriminant(weight, _bias(weight, statistics, priors), chosen, found, _accuracy(found, target), path)


def _chosen(logits: dict[float, Tensor], target: Tensor, criterion: Criterion) -> tuple[float, dict[float, float]]:
    """Return the best shrinkage, of equal ones the largest, and what each of several comes to."""
    if len(logits) == 1:
        return next(iter(logits)), {}
    scores = {s: _accuracy(found, target).item() for s, found in logits.items()}
    if all(score != score for score in scores.values()):
        raise ValueError(
            "without any of these few samples nothing is left to choose a shrinkage by; give one shrinkage"
        )
    if criterion == "log_likelihood":
        scores = {s: _log_likelihood(found, target).item() for s, found in logits.items()}
    return max(scores, key=lambda s: (scores[s], s)), scores


def _accuracy(logits: Tensor, target: Tensor) -> Tensor:
    defined = torch.isfinite(logits).all(1)
    return (logits[defined].argmax(1) == target[defined]).double().mean()


def _log_likelihood(logits: Tensor, target: Tensor) -> Tensor:
    defined = torch.isfinite(logits).all(1)
    return -F.cross_entropy(logits[defined] / temperature(logits, target), target[defined])


def _solved(product: Tensor, deviations: Tensor | None, statistics: ClassStatistics, shrinkage: float) -> Tensor:
    """Solve for the classes at once: by the scatter, or by the Gram matrix of the deviations (Woodbury's formula).

    Unlike an eigendecomposition this is differentiable where eigenvalues are equal.
    """
    centred = statistics.means - statistics.means.mean(0)
    along, around = shrunk(statistics.spreads.sum(), statistics.counts.sum(), centred.shape[1], shrinkage)
    ridged = along * product + around * torch.eye(len(product), dtype=product.dtype, device=product.device)
    inside: Tensor = torch.linalg.solve(ridged, centred.T if deviations is None else deviations @ centred.T)
    return inside.T if deviations is None else (centred - along * inside.T @ deviations) / around


def _bias(weight: Tensor, statistics: ClassStatistics, priors: Priors) -> Tensor:
    ends = statistics.means + statistics.means.mean(0)
    return log_priors(statistics.counts, priors) - (weight * ends).sum(1) / 2
