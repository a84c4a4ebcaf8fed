"""The path of shrunk discriminants with exact leave-one-out, in coordinates in which all of it is diagonal.

``nc_finetune.functional.linear_discriminant`` gives one discriminant; rules that weigh a whole path, and classes of
several centres, need the logits of every shrinkage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

# Odds s / (1 - s): with N < D nothing moves below 0.1, and what matters lies beyond 1.
ODDS = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
LONG = (*(odds / (1 + odds) for odds in ODDS), 1.0)


@dataclass(frozen=True)
class Point:
    """One discriminant of a path, judged.

    Attributes:
        shrinkage: s.
        logits: Leave-one-out logits of the training sample, shape ``(N, K)``.
        right: Whether each of them is right, shape ``(N,)``.
        losses: Their cross-entropies at the best temperature, shape ``(N,)``.
        temperature: That.
        held_out: Logits of the images that it is judged by.
    """

    shrinkage: float
    logits: Tensor
    right: Tensor
    losses: Tensor
    temperature: float
    held_out: Tensor


class Coordinates:
    """Training and held-out features along the eigenvectors of the within-class scatter, in the span of the former."""

    def __init__(self, train: Tensor, groups: Tensor, held_out: Tensor) -> None:
        origin = train.mean(0)
        train, held_out, self.width = train - origin, held_out - origin, train.shape[1]
        if len(train) <= self.width:  # what lies beside the span is as far from all means
            span = torch.linalg.qr(train.T).Q
            train, held_out = train @ span, held_out @ span
        self.groups = groups
        self.counts = groups.bincount().double()
        means = torch.zeros(len(self.counts), train.shape[1], dtype=torch.float64).index_add_(0, groups, train)
        means /= self.counts[:, None]
        deviations = train - means[groups]
        values, vectors = torch.linalg.eigh(deviations.T @ deviations)
        self.kept = values > values[-1] * len(values) * torch.finfo(torch.float64).eps
        self.values = torch.where(self.kept, values, 0)
        self.train: Tensor = train @ vectors
        self.held_out: Tensor = held_out @ vectors
        self.means: Tensor = means @ vectors
        self.deviations: Tensor = deviations @ vectors
        self.leverages = (self.deviations[:, self.kept].square() / values[self.kept]).sum(1)

    def classify(self, s: float) -> Tensor:
        """Return logits of the held-out images, up to a number that all groups share."""
        number = len(self.train)
        ridge = s * self.values.sum() / (number * self.width)
        weighted = self.means / ((1 - s) / number * self.values + ridge)
        return self.held_out @ weighted.T - (weighted * self.means).sum(1) / 2

    def leave_one_out(self, s: float) -> Tensor:
        """Return logits of each sample by the discriminant without it; minus infinity for a group of it alone."""
        d, x, means, others = self.deviations, self.train, self.means, len(self.train) - 1
        growth = self.counts[self.groups] / (self.counts[self.groups] - 1)
        alone = growth.isinf()
        growth = growth.masked_fill(alone, 1)
        along = (1 - s) / others
        around = (s * (self.values.sum() - growth * d.square().sum(1)) / (others * self.width))[:, None]
        weights = 1 / (along * self.values + around)
        wd, wx = d * weights, x * weights
        itself = (wd * d).sum(1)
        lengths = (wx * x).sum(1, keepdim=True) - 2 * wx @ means.T + weights @ means.square().T
        products = (wd * x).sum(1, keepdim=True) - wd @ means.T
        own = self.groups[:, None]
        lengths = lengths.scatter(1, own, (growth.square() * itself)[:, None])
        products = products.scatter(1, own, (growth * itself)[:, None])
        free = 1 - growth * self.leverages
        free = torch.where(free.abs() < 1e-10, 0, free)
        damped = (d[:, self.kept].square() * weights[:, self.kept] / self.values[self.kept]).sum(1)
        left = free + growth * around[:, 0] * damped
        gain = torch.where(alone, 0, along * growth / left)
        logits = -(lengths + gain[:, None] * products.square()) / 2
        return torch.where(F.one_hot(self.groups, len(means)).bool() & alone[:, None], -torch.inf, logits)


def point(s: float, logits: Tensor, target: Tensor, held_out: Tensor) -> Point:
    temperature = best_temperature(logits, target)
    losses = F.cross_entropy(logits / temperature, target, reduction="none")
    return Point(s, logits, logits.argmax(1) == target, losses, temperature, held_out)


def path(train: Tensor, target: Tensor, held_out: Tensor, shrinkages: Sequence[float] = LONG) -> list[Point]:
    """Solve for each shrinkage."""
    found = Coordinates(train, target, held_out)
    return [point(s, found.leave_one_out(s), target, found.classify(s)) for s in shrinkages]


def best_temperature(logits: Tensor, target: Tensor) -> float:
    """Return the number to divide logits by for the least cross-entropy."""
    scale = float(logits[logits.isfinite()].std())

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / (scale * 10**log_temperature), target))

    found = minimize_scalar(loss, bounds=(-3, 2), method="bounded", options={"xatol": 1e-3})
    return float(scale * 10**found.x)
