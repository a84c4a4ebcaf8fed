"""The linear discriminant of class means and shrunk within-class covariance, with exact leave-one-out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from nc_finetune.errors import check_name
from nc_finetune.functional.class_statistics import (
    ClassStatistics,
    check_features,
    empty_class_statistics,
    update_class_statistics,
    within_class_scatter,
)
from nc_finetune.functional.undefined import named

Priors = Literal["equal", "counts"]
# From hardly any shrinkage to the nearest class mean.
SHRINKAGES = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
_ROUNDING = 1e-12  # of a leverage, which is at most 1
_CHUNK_ELEMENTS = 2**22  # 32 MiB in float64: what a step over samples holds at a time


class LinearDiscriminant(NamedTuple):
    """A classifier in closed form; ``features @ weight.T + bias`` are its logits. All float64.

    Attributes:
        weight: ``(m_k - m)^T inv(Sigma_s)``, shape ``(K, D)``.
        bias: Shape ``(K,)``.
        shrinkage: s, in ``(0, 1]``.
        leave_one_out_logits: Logits of each sample by the discriminant of all the others, shape ``(N, K)``; ``nan``
            for one without which its class has no sample, or no class a spread. ``None`` where there were only
            statistics.
        leave_one_out_accuracy: Share of right ones among those that have logits, a scalar; ``None`` likewise.
        path: Leave-one-out accuracies of the shrinkages that were tried, by shrinkage; empty where one was given.
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
) -> LinearDiscriminant:
    """Classify by class means ``m_k`` and the within-class covariance, shrunk towards a multiple of the identity.

    ``logit_k = (m_k - m)^T inv(Sigma_s) (z - m) - 1/2 (m_k - m)^T inv(Sigma_s) (m_k - m)`` with m the mean of the class
    means and ``Sigma_s = (1 - s) Sigma_W + s tr(Sigma_W) / D I`` (Fisher 1936, 10.1111/j.1469-1809.1936.tb02137.x;
    shrinkage: Friedman 1989, 10.1080/01621459.1989.10478752). Beside a term that all classes share these are the
    decision values of scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s)``.

    Leave-one-out is exact: mean and scatter of the sample's own class, the trace and the count are downdated, by
    Sherman and Morrison's formula on one eigendecomposition that serves every s. It is taken of the scatter, or of the
    Gram matrix of the deviations where ``N <= D``: ``O(min(N, D)^3)`` once and ``O(N min(N, D) K)`` for each s, in
    ``8 (min(N, D)^2 + N D)`` bytes. Weight and bias are differentiable in ``features`` for a given s.

    Args:
        features: z, shape ``(N, D)``, floating point; or the statistics of a pass, with a scatter.
        target: Shape ``(N,)``, integers in ``[0, K)``; none beside statistics.
        shrinkage: s in ``(0, 1]``, or several to choose from; ``None`` chooses from :data:`SHRINKAGES`. The best
            leave-one-out accuracy is taken, and of equal ones the largest s.
        num_classes: K; ``None`` takes the largest label plus one.
        priors: ``"equal"``, or ``"counts"`` for those of the samples.

    Returns:
        The discriminant.

    Raises:
        ValueError: If a class has no sample, samples of all classes coincide with their means, a feature is not finite,
            a label or a shrinkage is out of range, or there is nothing to choose a shrinkage by: statistics alone, or
            so few samples that without one of them nothing is left.

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
    if isinstance(features, ClassStatistics):
        if len(tried) > 1:
            raise ValueError(
                "statistics alone choose no shrinkage: leave-one-out needs the samples; give one shrinkage"
            )
        statistics = features
        _check_classes(statistics)
        weight, bias = _solved(within_class_scatter(statistics), None, statistics, tried[0], priors)
        return LinearDiscriminant(weight, bias, tried[0], None, None, {})
    if target is None:
        raise ValueError("features need a target, one label a sample, shape (N,)")
    check_features(features, target)
    if len(target) == 0:
        raise ValueError("at least one sample is needed, got none")
    if target.min() < 0:
        raise ValueError(f"labels must be integers from 0 on, got {int(target.min())}")
    if not torch.isfinite(features).all():
        raise ValueError("features must be finite, got nan or infinity")
    return _of_samples(features.double(), target.long(), num_classes, tried, priors)


def checked_shrinkages(shrinkage: float | Sequence[float] | None) -> tuple[float, ...]:
    """Return the shrinkages to try.

    Raises:
        ValueError: If one is out of range, or there is none.
    """
    given: Any = SHRINKAGES if shrinkage is None else shrinkage
    tried = tuple(map(float, given)) if isinstance(given, list | tuple) else (float(given),)
    if not tried or not all(0 < value <= 1 for value in tried):
        raise ValueError(f"shrinkage must lie in (0, 1], got {shrinkage}")
    return tried


def _check_classes(statistics: ClassStatistics) -> None:
    if (missing := statistics.counts == 0).any():
        raise ValueError(f"every class needs a sample, but there is none of class {named(missing)}; leave it out")
    # Rounding leaves a spread of this size where samples are the same.
    rounding = torch.finfo(statistics.means.dtype).eps * statistics.counts.amax() * statistics.means.abs().amax()
    if not statistics.spreads.sum() > rounding.square() * statistics.means.shape[1] * statistics.counts.sum():
        raise ValueError("samples coincide with the mean of their class: there is no within-class covariance")


def _of_samples(
    features: Tensor, target: Tensor, num_classes: int | None, tried: Sequence[float], priors: Priors
) -> LinearDiscriminant:
    scatter = features.shape[0] > features.shape[1]
    classes = int(target.max()) + 1 if num_classes is None else num_classes
    empty = empty_class_statistics(classes, features.shape[1], features.device, scatter=scatter)
    statistics = update_class_statistics(empty, features, target)
    _check_classes(statistics)
    deviations = features - statistics.means[target]
    product = within_class_scatter(statistics) if scatter else deviations @ deviations.T
    with torch.no_grad():
        spectrum = _Spectrum.of(product, deviations, statistics)
        logits = {s: spectrum.leave_one_out(target, s, priors) for s in dict.fromkeys(tried)}
    right = {s: _accuracy(found, target) for s, found in logits.items()}
    if len(logits) > 1 and not any(torch.isfinite(value) for value in right.values()):
        raise ValueError(
            "without any of these few samples nothing is left to choose a shrinkage by; give one shrinkage"
        )
    chosen = max(logits, key=lambda s: (right[s].item(), s))
    weight, bias = _solved(product, None if scatter else deviations, statistics, chosen, priors)
    path = {s: found.item() for s, found in right.items()} if len(logits) > 1 else {}
    return LinearDiscriminant(weight, bias, chosen, logits[chosen], right[chosen], path)


def _accuracy(logits: Tensor, target: Tensor) -> Tensor:
    defined = torch.isfinite(logits).all(1)
    return (logits[defined].argmax(1) == target[defined]).double().mean()


def _solved(
    product: Tensor, deviations: Tensor | None, statistics: ClassStatistics, shrinkage: float, priors: Priors
) -> tuple[Tensor, Tensor]:
    """Solve for the classes at once: by the scatter, or by the Gram matrix of the deviations (Woodbury's formula)."""
    origin = statistics.means.mean(0)
    centred = statistics.means - origin
    along, around = _shrunk(statistics.spreads.sum(), statistics.counts.sum(), centred.shape[1], shrinkage)
    ridged = along * product + around * torch.eye(len(product), dtype=product.dtype, device=product.device)
    if deviations is None:
        weight = torch.linalg.solve(ridged, centred.T).T
    else:
        inside = torch.linalg.solve(ridged, deviations @ centred.T)
        weight = (centred - along * inside.T @ deviations) / around
    bias = -(weight * (statistics.means + origin)).sum(1) / 2
    return weight, bias + _log_priors(statistics.counts, priors)


def _shrunk(trace: Tensor, count: Tensor, width: int, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Return a and b of ``Sigma_s = a S + b I``, S the scatter."""
    return (1 - shrinkage) / count, shrinkage * trace / (count * width)


def _log_priors(counts: Tensor, priors: Priors) -> Tensor:
    return torch.zeros_like(counts) if priors == "equal" else (counts / counts.sum()).log()


class _Spectrum(NamedTuple):
    """Samples and class means along the eigenvectors of the scatter.

    Attributes:
        values: Eigenvalues of the scatter, shape ``(R,)``: all, or those above rounding where it was a Gram matrix.
        deviations: Of the samples from their class means, shape ``(N, R)``.
        means: Of the classes from the mean of the class means, shape ``(K, R)``.
        leverages: ``d^T pinv(S) d`` of each deviation d, shape ``(N,)``.
        beside: Products of what the means have beside the eigenvectors, shape ``(K, K)``.
        counts: Shape ``(K,)``.
        width: D.
    """

    values: Tensor
    deviations: Tensor
    means: Tensor
    leverages: Tensor
    beside: Tensor
    counts: Tensor
    width: int

    @classmethod
    def of(cls, product: Tensor, deviations: Tensor, statistics: ClassStatistics) -> _Spectrum:
        """Decompose the scatter, or the Gram matrix of the deviations."""
        values, vectors = torch.linalg.eigh(product)
        kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        centred = statistics.means - statistics.means.mean(0)
        counts, width = statistics.counts, deviations.shape[1]
        if statistics.scatter is not None:
            own, means, values = deviations @ vectors, centred @ vectors, torch.where(kept, values, 0)
            leverages = (own[:, kept].square() / values[kept]).sum(1)
            return cls(values, own, means, leverages, centred.new_zeros(len(centred), len(centred)), counts, width)
        values, vectors = values[kept], vectors[:, kept]
        means = (centred @ deviations.T @ vectors) / values.sqrt()
        beside = centred @ centred.T - means @ means.T
        return cls(values, vectors * values.sqrt(), means, vectors.square().sum(1), beside, counts, width)

    def leave_one_out(self, target: Tensor, shrinkage: float, priors: Priors) -> Tensor:
        """Classify each sample by all the others, in pieces that bound the memory; shape ``(N, K)``."""
        found = torch.empty(len(target), len(self.counts), dtype=torch.float64, device=self.values.device)
        for rows in self._pieces(len(target)):
            found[rows] = self._without(rows, target[rows], shrinkage, priors)
        return found

    def _pieces(self, samples: int) -> Iterator[slice]:
        size = max(1, _CHUNK_ELEMENTS // (len(self.values) + len(self.counts)))
        return (slice(start, start + size) for start in range(0, samples, size))

    def _without(self, rows: slice, target: Tensor, shrinkage: float, priors: Priors) -> Tensor:
        """Give logits of samples, each by the discriminant without it: half the difference of squared distances.

        With d the deviation of a sample from its class mean and n the class's count, the scatter without it is
        ``S - g d d^T``, ``g = n / (n - 1)``, and its deviation from the mean without it is ``g d``.
        """
        own, size, others = self.deviations[rows], self.counts[target], self.counts.sum() - 1
        growth = size / (size - 1)  # infinite where nothing is left of the class: nan follows
        squares = own.square().sum(1)
        along, around = _shrunk(self.values.sum() - growth * squares, others, self.width, shrinkage)
        weights = (along * self.values + around.unsqueeze(1)).reciprocal()
        rest = around.reciprocal().unsqueeze(1)
        weighted = own * weights
        # Products under the inverse before the downdate: of d and d, d and the class means, and the class means.
        itself = (weighted * own).sum(1, keepdim=True)
        across = weighted @ self.means.T
        norms = weights @ self.means.square().T + rest * self.beside.diagonal()
        mine = (weights * self.means[target]) @ self.means.T + rest * self.beside[target]
        column = target.unsqueeze(1)
        own_across, own_norm, growth = across.gather(1, column), norms.gather(1, column), growth.unsqueeze(1)
        # Deviations from the class means, the own one without the sample; then from the mean of the class means.
        lengths = itself + 2 * (own_across - across) + own_norm + norms - 2 * mine
        products = itself + own_across - across
        lengths = lengths.scatter(1, column, growth.square() * itself)
        products = products.scatter(1, column, growth * itself)
        moved = 1 + (growth - 1) / len(self.counts)
        centre = moved.square() * itself + 2 * moved * own_across + own_norm
        centre_product = moved * itself + own_across
        # 1 - a g d^T inv(a S + b) d as a sum of what is not negative: with few samples it is as small as b.
        damped = (own.square() * weights * torch.where(self.values > 0, self.values, 1).reciprocal()).sum(
            1, keepdim=True
        )
        free = 1 - growth * self.leverages[rows].unsqueeze(1)
        free = torch.where(free.abs() < _ROUNDING, 0, free)
        gain = along * growth / (free + growth * around.unsqueeze(1) * damped)
        logits = (centre + gain * centre_product.square() - lengths - gain * products.square()) / 2
        left = self.counts.expand(len(target), -1).scatter(1, column, size.unsqueeze(1) - 1)
        return logits if priors == "equal" else logits + (left / others).log()
