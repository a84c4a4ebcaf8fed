"""Real networks on scikit-learn's digits of 8 x 8 pixels: building, training, measuring their collapse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nc_finetune.backbones import TimmBackbone, narrow_features
from nc_finetune.errors import missing_extra
from nc_finetune.functional import (
    class_statistics,
    nc1,
    nc2_etf_distance,
    nc2_of_distance,
    nc3_etf_distance,
    nc3_of_distance,
)

try:
    from sklearn.datasets import load_digits
except ImportError as error:
    raise missing_extra("scikit-learn", "theory", "the theory bench") from error

CLASSES = 10
OptimizerName = Literal["SGD", "Adam", "L-BFGS"]
Loss = Callable[[Tensor, Tensor], Tensor]
Head = Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class Split:
    """Images ``(N, 1, 8, 8)`` and labels ``(N,)``."""

    images: Tensor
    labels: Tensor

    def with_random_labels(self, seed: int) -> Split:
        """Return the same images, the same number a class, dealt out at random."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        return Split(self.images, self.labels[order])


def digits(samples_per_class: int, seed: int) -> tuple[Split, Split]:
    """Return that many digits of each class to train on, and all others to test on, both standardised."""
    pixels, targets = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    shuffled = targets[order]
    counts = nn.functional.one_hot(shuffled).cumsum(dim=0)  # of each class up to here
    rank_in_class = counts.gather(1, shuffled.unsqueeze(1)).squeeze(1)
    train, test = order[rank_in_class <= samples_per_class], order[rank_in_class > samples_per_class]
    deviation, mean = torch.std_mean(pixels[train])
    images = ((pixels - mean) / deviation).float().view(-1, 1, 8, 8)
    return Split(images[train], targets[train]), Split(images[test], targets[test])


class Network(nn.Module):
    """A body that makes features, and a head with a weight."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(self.body(images))
        return logits

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return features in eval mode, float64."""
        self.eval()
        return torch.cat([self.body(part) for part in images.split(250)]).double()

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


class _ResidualBody(nn.Module):
    """A residual network of timm with a stem for small images: stride 1, no pooling."""

    def __init__(self, name: str, width: int | None) -> None:
        super().__init__()
        self.backbone = TimmBackbone(name, weights=None, model_options={"in_chans": 1})
        if width is not None:
            narrow_features(self.backbone, width)
        model = self.backbone.model
        if isinstance(model.conv1, nn.Conv2d):
            model.conv1 = nn.Conv2d(1, model.conv1.out_channels, kernel_size=3, padding=1, bias=False)
        else:
            model.conv1[0].stride = (1, 1)  # type: ignore[index, union-attr]
        model.maxpool = nn.Identity()
        model.to(memory_format=torch.contiguous_format)  # what L-BFGS flattens

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone.penultimate(images)


def residual_network(name: str, head: Head = nn.Linear, *, width: int | None = None, seed: int = 0) -> Network:
    """Build a residual network with random weights.

    Args:
        name: Of timm.
        head: Builds the head from the width of the features and the number of classes.
        width: Of the features; ``None`` leaves it.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    body = _ResidualBody(name, width)
    return Network(body, head(body.backbone.num_features, CLASSES))


def perceptron(width: int, depth: int, seed: int) -> Network:
    """Build a multi-layer perceptron of hidden layers of one width, each with BatchNorm and ReLU."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in [64, *[width] * (depth - 1)]:
        layers += [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return Network(nn.Sequential(*layers), nn.Linear(width, CLASSES))


@dataclass(frozen=True)
class Training:
    """How a network is trained: half the weight decay times the squared norm of all parameters is added to the loss.

    Attributes:
        rate: The highest learning rate: it rises for a fifth of the steps and falls to zero; not used by L-BFGS, which
            searches along lines.
        weight_decay: On all parameters.
        epochs: Passes over the data; iterations of L-BFGS, each on all samples.
        batch: Samples a step; not used by L-BFGS.
    """

    rate: float
    weight_decay: float
    epochs: int
    batch: int


def train(net: Network, split: Split, loss: Loss, name: OptimizerName, training: Training) -> Iterator[int]:
    """Train a network; yield the number of epochs before the first and after each."""
    yield 0
    if name == "L-BFGS":
        yield from _train_lbfgs(net, split, loss, training)
        return
    made = _make_optimizer(net, name, training)
    batches = -(-len(split.labels) // training.batch)
    # A warm start: MSE diverges on random weights at the rate that collapses them later.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        made, training.rate, total_steps=batches * training.epochs, pct_start=0.2, cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(0)
    for epoch in range(training.epochs):
        net.train()
        for rows in torch.randperm(len(split.labels), generator=generator).split(training.batch):
            made.zero_grad()
            loss(net(split.images[rows]), split.labels[rows]).backward()  # type: ignore[no-untyped-call]
            made.step()
            schedule.step()
        yield epoch + 1


def _make_optimizer(net: Network, name: OptimizerName, training: Training) -> torch.optim.Optimizer:
    options = {"lr": training.rate, "weight_decay": training.weight_decay}
    if name == "Adam":
        return torch.optim.Adam(net.parameters(), **options)
    return torch.optim.SGD(net.parameters(), momentum=0.9, **options)


def _train_lbfgs(net: Network, split: Split, loss: Loss, training: Training) -> Iterator[int]:
    parameters = list(net.parameters())
    made = torch.optim.LBFGS(
        parameters, max_iter=1, max_eval=25, history_size=20, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        made.zero_grad()
        penalty = sum(parameter.square().sum() for parameter in parameters)
        value = loss(net(split.images), split.labels) + training.weight_decay / 2 * penalty
        value.backward()  # type: ignore[no-untyped-call]
        return value

    # The search looks far away: only the point that it takes may count for the statistics of the eval mode.
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for epoch in range(training.epochs):
        net.train()
        made.step(closure)  # type: ignore[arg-type]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            net(split.images)
        yield epoch + 1


def accuracy(net: Network, split: Split) -> float:
    """Return the share of right decisions."""
    with torch.no_grad():
        right = net.head(net.features(split.images).float()).argmax(dim=1) == split.labels
    return float(right.double().mean())


def collapse(net: Network, split: Split) -> dict[str, float]:
    """Return NC1, NC2 and NC3 against a simplex and an orthogonal frame, and the mean cosine of classifier rows."""
    features, weight = net.features(split.images), net.head.weight.detach().double()  # type: ignore[operator, union-attr]
    means = class_statistics(features, split.labels).means
    rows = nn.functional.normalize(weight, dim=1)
    values = {
        "nc1": nc1(features, split.labels),
        "nc2": nc2_etf_distance(means),
        "nc2_of": nc2_of_distance(means),
        "nc3": nc3_etf_distance(weight, means),
        "nc3_of": nc3_of_distance(weight, means),
        "cosine": ((rows @ rows.T).sum() - CLASSES) / (CLASSES * (CLASSES - 1)),
    }
    return {name: float(value) for name, value in values.items()}


@dataclass(frozen=True)
class Trained:
    """What was seen of one training: measures by epoch, accuracies at the end."""

    epochs: list[int]
    measures: list[dict[str, float]]
    train_accuracy: float
    test_accuracy: float
    size: int

    @property
    def end(self) -> dict[str, float]:
        """Measures after the last epoch."""
        return self.measures[-1]

    def fall(self, name: str) -> float:
        """Return by how much a measure has fallen: its end over its start."""
        return self.end[name] / self.measures[0][name]

    def curve(self, name: str) -> list[float]:
        """Return one measure by epoch."""
        return [measure[name] for measure in self.measures]


def observe(
    net: Network, data: tuple[Split, Split], loss: Loss, name: OptimizerName, training: Training, looks: int = 10
) -> Trained:
    """Train a network on the first split, look at its collapse now and then, and test it on the second."""
    every = max(1, training.epochs // looks)
    epochs, measures = list[int](), list[dict[str, float]]()
    for epoch in train(net, data[0], loss, name, training):
        if epoch % every == 0 or epoch == training.epochs:
            epochs.append(epoch)
            measures.append(collapse(net, data[0]))
    return Trained(epochs, measures, accuracy(net, data[0]), accuracy(net, data[1]), net.size)
