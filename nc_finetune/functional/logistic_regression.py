"""Multinomial logistic regression along a path of penalties, on whatever device the features are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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
        features: Shape ``(N, D)``.
        labels: Shape ``(N,)``, in ``[0, num_classes)``.
        num_classes: K.
        l2: Penalties, above 0, in any order.
        max_iterations: Of each fit.
        tolerance: A fit ends where no entry of the gradient is larger, along principal axes in units in which each is
            about equally steep: the objective is then within about half the sum of squares of these of its minimum.

    Returns:
        One fit for each penalty, from the strongest to the weakest, in the dtype of the features.

    Raises:
        ValueError: If there are no penalties, one is not above 0, or the features are not finite.

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
    if not features.isfinite().all():
        raise ValueError("features must be finite; look for broken images, or a network that diverged")
    limits = (max_iterations, tolerance)
    mean = features.mean(0)
    centred = features - mean
    scale = centred.square().mean().sqrt().clamp(min=torch.finfo(features.dtype).tiny)
    basis, coordinates, spread = _principal_axes(centred / scale)
    weight, bias = features.new_zeros(num_classes, len(spread)), features.new_zeros(num_classes)
    path = []
    for penalty in sorted(l2, reverse=True):
        # About the curvature along each axis: in these units every direction is equally steep.
        steepness = (spread / 2 + penalty).sqrt()
        start = torch.cat([weight * steepness, bias[:, None]], dim=1)
        solved, loss = _minimise(coordinates / steepness, labels, penalty / steepness.square(), start, limits)
        weight, bias = solved[:, :-1] / steepness, solved[:, -1]
        full = weight @ basis.T / scale
        path.append(LinearFit(penalty, full, bias - full @ mean, loss))
    return path


def _principal_axes(centred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return an orthonormal basis of the features, their coordinates in it, and their mean square along each axis."""
    wide = centred.shape[1] > len(centred)
    gram = (centred @ centred.T if wide else centred.T @ centred).double() / len(centred)
    squares, axes = torch.linalg.eigh(gram)
    kept = squares > squares[-1] * torch.finfo(centred.dtype).eps
    squares, axes = squares[kept].to(centred.dtype), axes[:, kept].to(centred.dtype)
    if wide:
        axes = centred.T @ axes / (squares * len(centred)).sqrt()
    return axes, centred @ axes, squares


@torch.inference_mode(False)
@torch.enable_grad()
def _minimise(
    features: Tensor, labels: Tensor, penalties: Tensor, start: Tensor, limits: tuple[int, float]
) -> tuple[Tensor, float]:
    parameters = start.clone().requires_grad_()
    iterations, tolerance = limits
    solver = torch.optim.LBFGS(
        [parameters],
        max_iter=iterations,
        tolerance_grad=tolerance,
        tolerance_change=1e-12,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def cross_entropy() -> Tensor:
        return F.cross_entropy(F.linear(features, parameters[:, :-1], parameters[:, -1]), labels)

    def objective() -> Tensor:
        solver.zero_grad()
        loss = cross_entropy() + (penalties * parameters[:, :-1].square()).sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(objective)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return parameters.detach(), float(cross_entropy())
