"""The unconstrained features model: free features, classifier and bias with weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nc_finetune.functional import nc1, nc2_etf_distance, nc2_of_distance, nc3_etf_distance, nc3_of_distance
from nc_finetune.losses import FocalLoss, RescaledMSELoss

LossName = Literal["cross-entropy", "label smoothing", "focal", "MSE", "rescaled MSE"]
OptimizerName = Literal["gradient descent", "momentum", "Adam", "L-BFGS"]
# Largest second derivative of a loss in a logit, roughly: a stable step is shorter by it.
CURVATURE: dict[LossName, float] = {
    "cross-entropy": 1.0,
    "label smoothing": 1.0,
    "focal": 1.0,
    "MSE": 1.0,
    "rescaled MSE": 2.5,
}
Loss = Callable[[Tensor, Tensor], Tensor]


def make_loss(name: LossName) -> Loss:
    """Build a loss; the two squared ones with the factor 1/2 of the theory."""
    squared = {"MSE": RescaledMSELoss(alpha=1.0, target=1.0), "rescaled MSE": RescaledMSELoss(alpha=5.0, target=1.0)}
    if name in squared:
        return lambda logits, labels: logits.shape[1] / 2 * squared[name](logits, labels)
    if name == "focal":
        return FocalLoss(gamma=2.0)
    return nn.CrossEntropyLoss(label_smoothing=0.1 if name == "label smoothing" else 0.0)


@dataclass(frozen=True)
class Decay:
    """Weight decay of features, classifier and bias: ``decay / 2`` times the squared norm."""

    features: float
    classifier: float
    bias: float = 0.0


@dataclass(frozen=True)
class Optimizer:
    """How to minimise.

    Attributes:
        name: The algorithm.
        rate: Its learning rate; not used by L-BFGS, which searches along lines.
        steps: Steps at most.
        look: Steps between two looks.
    """

    name: OptimizerName
    rate: float
    steps: int
    look: int = 25


class UnconstrainedFeatures(nn.Module):
    """Free features H, classifier W and bias b, float64.

    Args:
        counts: Samples of each class.
        width: D.
        decay: Weight decay.
        loss: Loss of logits and labels.
        bias: Whether there is a bias.
        scale: Standard deviation of the initial entries.
        seed: Of the initial entries.
        labels: What the loss gets, one row a sample; ``None`` takes the class of each sample from the counts.
    """

    def __init__(
        self,
        counts: Sequence[int],
        width: int,
        decay: Decay,
        loss: Loss,
        *,
        bias: bool,
        scale: float = 1.0,
        seed: int = 0,
        labels: Tensor | None = None,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(*shape, generator=generator, dtype=torch.float64))

        classes = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        self.labels = classes if labels is None else labels
        self.features = draw(len(self.labels), width)
        self.classifier = draw(len(counts), width)
        self.bias = nn.Parameter(torch.zeros(len(counts), dtype=torch.float64)) if bias else None
        self.decay = decay
        self.loss = loss

    @property
    def logits(self) -> Tensor:
        """Logits of all samples, shape ``(N, K)``."""
        return nn.functional.linear(self.features, self.classifier, self.bias)

    def forward(self) -> Tensor:
        """Return the objective."""
        decay = self.decay
        value = self.loss(self.logits, self.labels) + decay.features / 2 * self.features.square().sum()
        value = value + decay.classifier / 2 * self.classifier.square().sum()
        return value if self.bias is None else value + decay.bias / 2 * self.bias.square().sum()

    @property
    def means(self) -> Tensor:
        """Class means, shape ``(K, D)``."""
        one_hot = nn.functional.one_hot(self.labels).double()
        return (one_hot.T @ self.features.detach()) / one_hot.sum(dim=0).unsqueeze(1)

    @property
    def gradient_norm(self) -> float:
        """Norm of the gradient of the objective."""
        gradients = torch.autograd.grad(self(), list(self.parameters()))
        return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))

    def hessian(self) -> Tensor:
        """Hessian of the objective in all parameters, one after the other."""
        shapes = {name: parameter.shape for name, parameter in self.named_parameters()}
        sizes = [shape.numel() for shape in shapes.values()]

        def objective(flat: Tensor) -> Tensor:
            parts = flat.split(sizes)
            named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
            value: Tensor = torch.func.functional_call(self, named, ())
            return value

        flat = torch.cat([parameter.detach().flatten() for parameter in self.parameters()])
        hessian: Tensor = torch.autograd.functional.hessian(objective, flat)  # type: ignore[no-untyped-call]
        return hessian

    def measures(self) -> dict[str, float]:
        """Objective, gradient, and the collapse of features and classifier."""
        means, weight = self.means, self.classifier.detach()
        return {
            "objective": self().item(),
            "gradient": self.gradient_norm,
            "nc1": float(nc1(self.features.detach(), self.labels)),
            "nc2": float(nc2_etf_distance(means)),
            "nc3": float(nc3_etf_distance(weight, means)),
            "nc2_of": float(nc2_of_distance(means)),
            "nc3_of": float(nc3_of_distance(weight, means)),
        }

    def certificate(self) -> float:
        """Spectral norm of the loss' gradient at the logits, over ``sqrt(lambda_W lambda_H)``.

        For a convex loss a critical point is a global minimum if it is at most 1: the weight decay of two factors is
        the nuclear norm of their product, and this is its dual certificate (Zhu et al. 2021, D >= K).
        """
        logits = self.logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(logits, self.labels), logits)
        level = math.sqrt(self.decay.classifier * self.decay.features)
        return float(torch.linalg.matrix_norm(gradient, ord=2)) / level


def _gradient_norm(parameters: Sequence[nn.Parameter]) -> float:
    return math.sqrt(sum(float(item.grad.square().sum()) for item in parameters if item.grad is not None))


def minimize(model: nn.Module, optimizer: Optimizer, tolerance: float) -> Iterator[int]:
    """Minimise what the model returns until the norm of its gradient is below the tolerance.

    Yields:
        The step, every ``look`` steps and at the end.
    """
    parameters = list(model.parameters())
    if optimizer.name == "L-BFGS":
        yield from _minimize_lbfgs(model, parameters, optimizer, tolerance)
        return
    if optimizer.name == "Adam":
        # AMSGrad: plain Adam at a constant rate does not settle (Reddi et al. 2018, arXiv:1904.09237).
        made: torch.optim.Optimizer = torch.optim.Adam(parameters, lr=optimizer.rate, amsgrad=True)
    else:
        momentum = 0.9 if optimizer.name == "momentum" else 0.0
        made = torch.optim.SGD(parameters, lr=optimizer.rate, momentum=momentum)
    for step in range(optimizer.steps + 1):
        made.zero_grad()
        model().backward()
        if step % optimizer.look == 0:
            yield step
            if _gradient_norm(parameters) < tolerance:
                return
        made.step()


def _minimize_lbfgs(
    model: nn.Module, parameters: list[nn.Parameter], optimizer: Optimizer, tolerance: float
) -> Iterator[int]:
    size = sum(parameter.numel() for parameter in parameters)
    made = torch.optim.LBFGS(
        parameters,
        max_iter=optimizer.look,
        history_size=20,
        tolerance_grad=tolerance / math.sqrt(size),  # of the largest entry: the norm is below its own then
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        made.zero_grad()
        value: Tensor = model()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    for step in range(0, optimizer.steps + 1, optimizer.look):
        yield step
        made.step(closure)  # type: ignore[arg-type]
        closure()  # the search may have ended elsewhere than it looked last
        if _gradient_norm(parameters) < tolerance:
            yield step + optimizer.look
            return


def reach_minimum(model: nn.Module, steps: int, tolerance: float) -> None:
    """Minimise by L-BFGS and look at nothing on the way."""
    for _ in minimize(model, Optimizer("L-BFGS", 1.0, steps), tolerance):
        pass
