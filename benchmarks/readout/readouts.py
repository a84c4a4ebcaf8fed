"""Layers side by side, discriminants on them, and the rules that choose on the training sample alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from benchmarks.readout.discriminants import Coordinates, Point, path
from benchmarks.readout.features import Features, Views
from nc_finetune.functional.logistic_regression import logistic_path

Layers = Literal["penultimate", "last_blocks", "later_half", "all"]
Normalize = Literal["none", "each", "joint", "train"]
Rule = Literal["accuracy", "likelihood"]
LAYERS: tuple[Layers, ...] = ("penultimate", "last_blocks", "later_half", "all")
PREFERRED: Layers = "later_half"
PENALTIES = tuple(10 ** (-step / 2) for step in range(-2, 11))


def layer_names(views: Views, layers: Layers) -> tuple[str, ...]:
    """Return the blocks that a word stands for, and the penultimate feature."""
    blocks = tuple(views.stds)
    number = {"penultimate": 0, "last_blocks": 3, "later_half": len(blocks) - len(blocks) // 2, "all": len(blocks)}
    return (*blocks[len(blocks) - number[layers] :], "penultimate")


def side_by_side(
    views: Views, layers: Layers = PREFERRED, *, std: bool = True, normalize: Normalize = "each", power: float = 1.0
) -> Tensor:
    """Return float64 features ``(N, D)``: mean, and std, of layers, each part divided by its norm.

    Args:
        views: Pooled outputs.
        layers: Which.
        std: Take the std over positions beside the mean.
        normalize: ``"each"`` divides mean and std each by its norm, ``"joint"`` both by that of both, ``"train"`` by
            the mean of the norms of all images, one number a part, ``"none"`` by nothing.
        power: Signed power of each feature before that.
    """
    found = []
    for name in layer_names(views, layers):
        parts = [views.means[name], *([views.stds[name]] if std and name in views.stds else [])]
        parts = [part.double().abs().pow(power) * part.sign() for part in parts]
        if normalize == "joint":
            parts = [torch.cat(parts, 1)]
        if normalize == "train":
            parts = [part / part.norm(dim=1).mean() for part in parts]
        elif normalize != "none":
            parts = [F.normalize(part, dim=1) for part in parts]
        found += parts
    return torch.cat(found, 1)


@dataclass(frozen=True)
class Case:
    """One training sample of a data set."""

    features: Features
    seed: int

    @property
    def rows(self) -> Tensor:
        return self.features.samples[self.seed]

    @property
    def held_out(self) -> Tensor:
        return self.features.held_out[self.seed]

    @property
    def target(self) -> Tensor:
        return self.features.labels[self.rows]

    def solved(self, z: Tensor, shrinkages: Sequence[float] | None = None) -> list[Point]:
        """Return the path of discriminants on features of all images."""
        given = () if shrinkages is None else (shrinkages,)
        return path(z[self.rows], self.target, z[self.held_out], *given)

    @cached_property
    def paths(self) -> dict[Layers, list[Point]]:
        """The path of each choice of layers, with std."""
        return {layers: self.solved(side_by_side(self.features.plain, layers)) for layers in LAYERS}

    @property
    def candidates(self) -> dict[Layers, Point]:
        """The best of each by likelihood."""
        return {layers: choose(points) for layers, points in self.paths.items()}

    @property
    def preferred(self) -> Point:
        """The later half, which variants change one thing of."""
        return self.candidates[PREFERRED]

    def accuracy(self, logits: Tensor, *, test: bool = False) -> float:
        """Return per cent of the held-out images, or of the test images among them, which come first."""
        number = len(self.features.test) if test else len(self.held_out)
        right = logits[:number].argmax(1) == self.features.labels[self.held_out[:number]]
        return 100 * float(right.double().mean())


def choose(points: Sequence[Point], rule: Rule = "likelihood") -> Point:
    """Take the best by leave-one-out; of equal ones the largest shrinkage."""
    if rule == "accuracy":
        return max(points, key=lambda found: (int(found.right.sum()), found.shrinkage))
    return min(points, key=lambda found: (float(found.losses.mean()), -found.shrinkage))


def beats(found: Point, reference: Point, errors: float, rule: Rule = "likelihood") -> float:
    """Return by how much one is better than the other, 0 if by less than so many paired standard errors."""
    gains = found.right.double() - reference.right.double() if rule == "accuracy" else reference.losses - found.losses
    mean = float(gains.mean())
    return mean if mean > 0 and mean > errors * float(gains.std()) / len(gains) ** 0.5 else 0.0


def automatic(candidates: Mapping[Layers, Point], errors: float, rule: Rule = "likelihood") -> Layers:
    """Take the preferred layers unless others beat them."""
    gains = {layers: beats(found, candidates[PREFERRED], errors, rule) for layers, found in candidates.items()}
    best = max(gains, key=lambda layers: gains[layers])
    return best if gains[best] > 0 else PREFERRED


def stacked(candidates: Sequence[Point], target: Tensor) -> Point:
    """Add logits up, by weights from 0 on with the least cross-entropy of leave-one-out; a linear map again."""
    logits = torch.stack([found.logits / found.temperature for found in candidates])
    logits = logits - logits.mean(2, keepdim=True)
    chosen = F.one_hot(target, logits.shape[2]).bool()

    def loss(weights: object) -> tuple[float, object]:
        mixed = torch.einsum("j,jnk->nk", torch.as_tensor(weights), logits)
        error = (torch.softmax(mixed, 1) - chosen.double()) / len(target)
        return float(F.cross_entropy(mixed, target)), torch.einsum("nk,jnk->j", error, logits).numpy()

    start = [1 / len(candidates)] * len(candidates)
    weights = torch.as_tensor(minimize(loss, start, jac=True, bounds=[(0, None)] * len(candidates)).x)
    mixed = torch.einsum("j,jnk->nk", weights, logits)
    held_out = torch.stack([found.held_out / found.temperature for found in candidates])
    losses = F.cross_entropy(mixed, target, reduction="none")
    return Point(0.0, mixed, mixed.argmax(1) == target, losses, 1.0, torch.einsum("j,jnk->nk", weights, held_out))


def averaged(candidates: Sequence[Point], target: Tensor) -> Point:
    """Add logits up with equal weights, each at its temperature."""
    logits = torch.stack([found.logits / found.temperature for found in candidates]).mean(0)
    held_out = torch.stack([found.held_out / found.temperature for found in candidates]).mean(0)
    losses = F.cross_entropy(logits, target, reduction="none")
    return Point(0.0, logits, logits.argmax(1) == target, losses, 1.0, held_out)


def probe(case: Case) -> Tensor:
    """Return held-out logits of logistic regression on the penultimate feature, l2 by likelihood on five folds."""
    z, target, classes = case.features.plain.means["penultimate"], case.target, case.features.classes
    train = z[case.rows]
    losses = torch.zeros(len(PENALTIES))
    for fit, val in StratifiedKFold(5, shuffle=True, random_state=0).split(train, target):
        for step, found in enumerate(logistic_path(train[fit], target[fit], classes, PENALTIES)):
            losses[step] += F.cross_entropy(train[val] @ found.weight.T + found.bias, target[val], reduction="sum")
    best = logistic_path(train, target, classes, PENALTIES)[int(losses.argmin())]
    return z[case.held_out] @ best.weight.T + best.bias


def folds_of(target: Tensor, order: Tensor | None = None) -> Tensor:
    """Number the samples of each class, in an order: folds that leave one of every class out; shape ``(N,)``."""
    found = torch.empty_like(target)
    order = torch.arange(len(target)) if order is None else order
    for label in range(int(target.max()) + 1):
        rows = order[target[order] == label]
        found[rows] = torch.arange(len(rows))
    return found


def folded(train: Tensor, target: Tensor, fold: Tensor, shrinkages: Sequence[float]) -> list[Tensor]:
    """Return logits of each sample by the discriminant of the other folds, for each shrinkage."""
    logits = [torch.empty(len(train), int(target.max()) + 1, dtype=torch.float64) for _ in shrinkages]
    for number in range(int(fold.max()) + 1):
        out = fold == number
        found = Coordinates(train[~out], target[~out], train[out])
        for s, held in zip(shrinkages, logits, strict=True):
            held[out] = found.classify(s)
    return logits
