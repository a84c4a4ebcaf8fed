"""Deep linear networks f(x) = W_L ... W_1 x, trained by full-batch gradient descent."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

Initialization = Literal["orthogonal", "normal", "uniform"]
Activation = Callable[[Tensor], Tensor]


def random_orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Draw a matrix with orthonormal columns, or orthonormal rows where it is wide."""
    gaussian = torch.randn(max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64)
    basis, triangular = torch.linalg.qr(gaussian)
    basis = basis * triangular.diagonal().sign()
    return basis if rows >= columns else basis.T


def initial_weights(
    widths: Sequence[int], scale: float, generator: torch.Generator, initialization: Initialization = "orthogonal"
) -> list[Tensor]:
    """Draw W_1, ..., W_L of shapes ``(widths[l], widths[l - 1])``.

    ``W_l^T W_l = scale^2 I`` if orthogonal; otherwise independent entries of mean square ``scale^2 / widths[l - 1]``,
    so that columns are as long on average.
    """

    def draw(rows: int, columns: int) -> Tensor:
        if initialization == "orthogonal":
            return scale * random_orthonormal(rows, columns, generator)
        if initialization == "normal":
            return scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64) / columns**0.5
        uniform = 2 * torch.rand(rows, columns, generator=generator, dtype=torch.float64) - 1
        return scale * (3 / columns) ** 0.5 * uniform

    return [draw(rows, columns) for columns, rows in itertools.pairwise(widths)]


def product(weights: Sequence[Tensor]) -> Tensor:
    """Multiply ``W_L ... W_1``."""
    return torch.linalg.multi_dot(list(reversed(weights))) if len(weights) > 1 else weights[0]


def features(weights: Sequence[Tensor], inputs: Tensor, activation: Activation | None = None) -> list[Tensor]:
    """Return the features of all layers, from the input to the output; samples are columns."""
    layers = [inputs]
    for index, weight in enumerate(weights):
        output = weight @ layers[-1]
        layers.append(activation(output) if activation and index < len(weights) - 1 else output)
    return layers


def descend(
    weights: Sequence[Tensor],
    loss: Callable[[Sequence[Tensor]], Tensor],
    *,
    rates: float | Sequence[float],
    steps: int,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
) -> Iterator[tuple[float, list[Tensor]]]:
    """Descend from the weights, ``W <- (1 - rate * weight_decay) W - rate * gradient``, with heavy-ball momentum.

    Yields:
        The loss and the weights before every step, and after the last one; the weights are changed in place.
    """
    parameters = [weight.clone().requires_grad_() for weight in weights]
    each = [rates] * len(parameters) if isinstance(rates, float) else rates
    groups = [{"params": [parameter], "lr": rate} for parameter, rate in zip(parameters, each, strict=True)]
    optimizer = torch.optim.SGD(groups, momentum=momentum, weight_decay=weight_decay)
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(parameters)
        yield value.item(), [parameter.detach() for parameter in parameters]
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    yield loss(parameters).item(), [parameter.detach() for parameter in parameters]
