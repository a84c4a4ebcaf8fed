"""What all other samples say of one, exactly: logits of their discriminant for many shrinkages, and distances."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Priors = Literal["equal", "counts"]
_ROUNDING = 1e-12  # of a leverage, which is at most 1
_PIECE_ELEMENTS = 2**17  # of samples, shrinkages, and eigenvectors and classes: what stays in a core's cache


class _Without(NamedTuple):
    """Samples against the classes, each under the scatter of all others; shapes ``(S, n, K)``, or 1 in place of K.

    Attributes:
        lengths: Squared deviations from the class means, the own one without the sample, under the inverse before the
            downdate.
        products: Products of these deviations and the sample's from its class mean, likewise.
        gain: What the downdate adds of squared products.
        centre: Squared deviation from the mean of the class means, likewise.
        centre_product: Its product.
    """

    lengths: Tensor
    products: Tensor
    gain: Tensor
    centre: Tensor
    centre_product: Tensor

    @property
    def distances(self) -> Tensor:
        """Squared Mahalanobis distances to the class means."""
        return self.lengths + self.gain * self.products.square()

    @property
    def logits(self) -> Tensor:
        """Half the differences of squared distances: to the mean of the class means, and to each of them."""
        gained = self.gain * self.centre_product.square() - self.gain * self.products.square()
        return (self.centre - self.lengths + gained) / 2


class Spectrum(NamedTuple):
    """The scatter by its eigenvalues, and the class means along its eigenvectors. All float64.

    Attributes:
        values: Eigenvalues of the scatter, shape ``(R,)``: all, or those above rounding where it was a Gram matrix.
        means: Of the classes from the mean of the class means, shape ``(K, R)``.
        beside: Products of what the means have beside the eigenvectors, shape ``(K, K)``.
        counts: Samples per class, shape ``(K,)``.
        width: D.
    """

    values: Tensor
    means: Tensor
    beside: Tensor
    counts: Tensor
    width: int

    def shrunk(self, shrinkage: float) -> tuple[Tensor, Tensor]:
        """Return a and b of ``Sigma_s = a S + b I`` with all samples."""
        return shrunk(self.values.sum(), self.counts.sum(), self.width, shrinkage)


def shrunk(trace: Tensor, count: Tensor, width: int, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Return a and b of ``Sigma_s = a S + b I``, S the scatter.

    Args:
        trace: Of S.
        count: N.
        width: D.
        shrinkage: s.
    """
    return (1 - shrinkage) / count, shrinkage * trace / (count * width)


def log_priors(counts: Tensor, priors: Priors) -> Tensor:
    """Return what is added to the logits, shape ``(K,)``.

    Args:
        counts: Samples per class, shape ``(K,)``.
        priors: Whether all classes are as likely.
    """
    return torch.zeros_like(counts) if priors == "equal" else (counts / counts.sum()).log()


def leave_one_out(
    spectrum: Spectrum, parts: Iterable[Tensor], target: Tensor, tried: Iterable[float], priors: Priors
) -> dict[float, Tensor]:
    """Classify samples, each by all the others, in pieces that bound the memory.

    Args:
        spectrum: Of all samples.
        parts: Deviations of the samples from their class means along the eigenvectors, shape ``(n, R)`` each.
        target: Their classes in the same order, shape ``(N,)``.
        tried: Shrinkages.
        priors: As in the discriminant.

    Returns:
        Logits of shape ``(N, K)`` by shrinkage; ``nan`` where without the sample its class has none.
    """
    shape = (len(target), len(spectrum.counts))
    found = {s: torch.empty(shape, dtype=torch.float64, device=target.device) for s in tried}
    for rows, without in _by_piece(spectrum, parts, target, list(found)):
        logits = without.logits
        if priors == "counts":
            logits = logits + _log_priors_without(spectrum.counts, target[rows])
        for kept, some in zip(found.values(), logits, strict=True):
            kept[rows] = some
    return found


def leave_one_out_distances(spectrum: Spectrum, parts: Iterable[Tensor], target: Tensor, shrinkage: float) -> Tensor:
    """Measure samples against the classes, each by what all the others give, in pieces that bound the memory.

    Args:
        spectrum: Of all samples.
        parts: As for :func:`leave_one_out`.
        target: Their classes in the same order, shape ``(N,)``.
        shrinkage: s.

    Returns:
        Squared Mahalanobis distances to the class means, shape ``(N, K)``; ``nan`` where without the sample its class
        has none.
    """
    shape = (len(target), len(spectrum.counts))
    found = torch.empty(shape, dtype=torch.float64, device=target.device)
    for rows, without in _by_piece(spectrum, parts, target, [shrinkage]):
        found[rows] = without.distances[0]
    return found


def _by_piece(
    spectrum: Spectrum, parts: Iterable[Tensor], target: Tensor, tried: list[float]
) -> Iterator[tuple[slice, _Without]]:
    shrinkages, start = target.new_tensor(tried, dtype=torch.float64), 0
    for own in _pieces(parts, len(tried), sum(spectrum.means.shape)):
        rows = slice(start, start + len(own))
        yield rows, _without(spectrum, own, target[rows], shrinkages)
        start = rows.stop


def _pieces(parts: Iterable[Tensor], shrinkages: int, width: int) -> Iterator[Tensor]:
    size = max(8, _PIECE_ELEMENTS // (shrinkages * width))
    for part in parts:
        yield from torch.split(part, size)


def _log_priors_without(counts: Tensor, target: Tensor) -> Tensor:
    left = counts.expand(len(target), -1).scatter(1, target.unsqueeze(1), counts[target].unsqueeze(1) - 1)
    return (left / (counts.sum() - 1)).log()


def _without(spectrum: Spectrum, own: Tensor, target: Tensor, shrinkages: Tensor) -> _Without:
    """Measure samples against the classes, each under the scatter without it.

    With d the deviation of a sample from its class mean and n the class's count, the scatter without it is
    ``S - g d d^T``, ``g = n / (n - 1)``, and its deviation from the mean without it is ``g d``.

    Args:
        spectrum: Of all samples.
        own: Shape ``(n, R)``.
        target: Shape ``(n,)``.
        shrinkages: Shape ``(S,)``.
    """
    values, means, beside, counts, width = spectrum
    size, others = counts[target].unsqueeze(1), counts.sum() - 1
    growth = size / (size - 1)  # infinite where nothing is left of the class: nan follows
    trace = values.sum() - growth * own.square().sum(1, keepdim=True)
    along = ((1 - shrinkages) / others).view(-1, 1, 1)
    around = shrinkages.view(-1, 1, 1) * trace / (others * width)
    weights = (along * values + around).reciprocal_()  # (S, n, R)
    # Products under the inverse before the downdate: of d and d, d and the class means, and the class means.
    weighted = weights * own
    itself = torch.linalg.vecdot(weighted, own).unsqueeze(2)
    across = weighted @ means.T
    norms = weights @ means.square().T + beside.diagonal() / around
    # 1 - a g d^T inv(a S + b) d as a sum of what is not negative: with few samples it is as small as b.
    over = own / torch.where(values > 0, values, 1)
    damped = torch.linalg.vecdot(weighted, over).unsqueeze(2)
    mine = weights.mul_(means[target]) @ means.T + beside[target] / around
    free = 1 - growth * torch.where(values > 0, own * over, 0).sum(1, keepdim=True)
    free = torch.where(free.abs() < _ROUNDING, 0, free)
    gain = along * growth / (free + growth * around * damped)
    # Deviations from the class means, the own one without the sample; then from the mean of the class means.
    column = target.view(1, -1, 1).expand(len(shrinkages), -1, 1)
    own_across, own_norm = across.gather(2, column), norms.gather(2, column)
    lengths = itself + 2 * (own_across - across) + own_norm + norms - 2 * mine
    products = itself + own_across - across
    lengths.scatter_(2, column, growth.square() * itself)
    products.scatter_(2, column, growth * itself)
    moved = 1 + (growth - 1) / len(counts)
    centre = moved.square() * itself + 2 * moved * own_across + own_norm
    centre_product = moved * itself + own_across
    return _Without(lengths, products, gain, centre, centre_product)
