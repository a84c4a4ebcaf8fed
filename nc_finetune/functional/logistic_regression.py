"""Multinomial logistic regression along a path of penalties, on whatever device the features are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nc_finetune.functional.class_statistics import as_labels, check_features

# Beyond so many, the spectrum of features is flat enough.
_AXES = 128


@dataclass(frozen=True)
class LinearFit:
    """A linear classifier at one point of the path.

    Attributes:
        l2: The penalty.
        weight: Shape ``(K, D)``.
        bias: Shape ``(K,)``.
        loss: Mean cross-entropy on the data of the fit, without the penalty.
    """

    l2: float
    weight: Tensor
    bias: Tensor
    loss: float


def logistic_path(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    l2: Sequence[float],
    *,
    max_iterations: int = 200,
    tolerance: float = 3e-4,
) -> list[LinearFit]:
    """Fit linear classifiers by L-BFGS, each from where the one before it ended.

    Minimises ``mean cross-entropy + l2 / 2 * s^2 * ||W||^2``, with the bias free and ``s`` the root mean square of the
    centred features, so that the same penalties suit features of any scale. Strong penalties come first: they are
    solved at once, and lead to the weak ones.

    Args:
        features: Shape ``(N, D)``, floating point; those of 16 bits are fitted in float32.
        labels: Shape ``(N,)``, integers in ``[0, num_classes)``.
        num_classes: K.
        l2: Penalties, above 0, in any order.
        max_iterations: Of each fit.
        tolerance: A fit ends where no entry of the gradient is larger, along principal axes in units in which each is
            about equally steep: the objective is then within about half the sum of squares of these of its minimum.

    Returns:
        One fit for each penalty, from the strongest to the weakest; float64 where the features are, else float32.

    Raises:
        ValueError: If there are no penalties, one is not above 0, there are no samples, a label is out of range, or the
            features are not finite.

    Source:
        Liu & Nocedal 1989, On the limited memory BFGS method for large scale optimization, 10.1007/BF01589116.

    Example:
        >>> features, labels = torch.tensor([[-1.0], [-0.5], [0.5], [1.0]]), torch.tensor([0, 0, 1, 1])
        >>> strong, weak = logistic_path(features, labels, 2, [1e-3, 1.0])
        >>> weak.loss < strong.loss, (features @ weak.weight.T + weak.bias).argmax(1).tolist()
        (True, [0, 0, 1, 1])
    """
    if not l2 or min(l2) <= 0:
        raise ValueError(f"l2 must hold penalties above 0, got {list(l2)}")
    check_features(features, labels)
    if not len(features):
        raise ValueError("at least one sample is needed, got none")
    if not features.isfinite().all():
        raise ValueError("features must be finite; look for broken images, or a network that diverged")
    labels = as_labels(labels, features.new_zeros(num_classes))
    features = features if features.dtype == torch.float64 else features.float()
    limits = (max_iterations, tolerance)
    mean = features.mean(0)
    centred = features - mean
    scale = centred.square().mean().sqrt().clamp(min=torch.finfo(features.dtype).tiny)
    centred /= scale
    axes, spread, rest = _steep_axes(centred)
    solutions = [centred.new_zeros(num_classes, centred.shape[1] + 1)] * 2
    path = []
    for penalty in sorted(l2, reverse=True):
        # About the curvature along each axis, and across them: in these units every direction is equally steep.
        units = _Units(axes, (spread / 2 + penalty).sqrt(), (rest / 2 + penalty).sqrt())
        # Solutions move steadily along the path: the next lies about as far on.
        ahead = 2 * solutions[-1] - solutions[-2]
        solved, loss = _minimise(centred, labels, penalty, ahead, units, limits)
        solutions.append(solved)
        weight = solved[:, :-1] / scale
        path.append(LinearFit(penalty, weight, solved[:, -1] - weight @ mean, loss))
    return path


class _Units(NamedTuple):
    """Units of weights in which the objective is about equally steep along axes and across them."""

    axes: Tensor
    along: Tensor
    across: Tensor

    def to(self, weight: Tensor) -> Tensor:
        """Bring weights of shape ``(K, D)`` to these units."""
        return weight * self.across + weight @ self.axes * (self.along - self.across) @ self.axes.T

    def back(self, weight: Tensor) -> Tensor:
        """Bring them back."""
        return weight / self.across + weight @ self.axes * (1 / self.along - 1 / self.across) @ self.axes.T


def _steep_axes(centred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return axes along which the features spread most, their mean square along each, and that across all of them.

    Two rounds of subspace iteration are near enough for units, and cost no eigenvalues of a D x D matrix.
    """
    samples, width = centred.shape
    number = min(_AXES, samples, width)
    found = torch.randn(width, number, generator=torch.Generator().manual_seed(0)).to(centred)
    for _ in range(2):
        found = torch.linalg.qr(centred.T @ (centred @ found)).Q
    inside = centred @ found
    squares, turned = torch.linalg.eigh((inside.T @ inside).double() / samples)
    spread = squares.clamp(min=0).to(centred.dtype)
    rest = (centred.square().sum() / samples - spread.sum()).clamp(min=0) / max(width - number, 1)
    return found @ turned.to(centred.dtype), spread, rest


@torch.inference_mode(False)
@torch.no_grad()
def _minimise(
    features: Tensor, labels: Tensor, penalty: float, start: Tensor, units: _Units, limits: tuple[int, float]
) -> tuple[Tensor, float]:
    """Return weights and biases, shape ``(K, D + 1)``, and their cross-entropy."""
    # Made here: what comes from inference mode cannot be a parameter.
    parameters = torch.cat([units.to(start[:, :-1]), start[:, -1:]], dim=1).clone()
    iterations, tolerance = limits
    solver = torch.optim.LBFGS(
        [parameters],
        max_iter=iterations,
        tolerance_grad=tolerance,
        tolerance_change=1e-12,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    targets = F.one_hot(labels, len(start)).to(features)

    def solution() -> Tensor:
        return torch.cat([units.back(parameters[:, :-1]), parameters[:, -1:]], dim=1)

    def log_probabilities(solved: Tensor) -> Tensor:
        return torch.log_softmax(F.linear(features, solved[:, :-1], solved[:, -1]), dim=1)

    def cross_entropy(log_p: Tensor) -> Tensor:
        return F.nll_loss(log_p, labels)

    def objective() -> Tensor:
        solved = solution()
        log_p = log_probabilities(solved)
        # By hand: a graph of so small products costs as much as they do.
        error = (log_p.exp() - targets) / len(labels)
        weight = solved[:, :-1]
        slope = units.back(error.T @ features + penalty * weight)
        parameters.grad = torch.cat([slope, error.sum(0)[:, None]], dim=1)
        return cross_entropy(log_p) + penalty / 2 * weight.square().sum()

    solver.step(objective)  # type: ignore[no-untyped-call]
    solved = solution()
    return solved, float(cross_entropy(log_probabilities(solved)))
