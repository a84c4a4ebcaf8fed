"""A LightningModule that knows nothing of us, and what its layers give, taken by hand."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import timm
import torch
from reference.neural_collapse import nc1
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 3


class PlainModule(L.LightningModule):
    """Classifies images with a network of timm, in the most usual way."""

    def __init__(self, name: str = "test_resnet", lr: float = 0.01, unpack: Callable[[Any], Any] = tuple) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net: nn.Module = timm.create_model(name, num_classes=CLASSES)
        self.lr = lr
        self.unpack = unpack
        self.images_seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.images_seen += len(images)
        logits: Tensor = self.net(images)
        return logits

    def _loss(self, batch: Any) -> Tensor:
        images, labels = self.unpack(batch)
        return nn.functional.cross_entropy(self(images), labels.clamp(0, CLASSES - 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._loss(batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def make_samples(number: int = 22, seed: int = 0, size: int = 32) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % CLASSES
    images = torch.randn(number, 3, size, size, generator=generator) + 0.2 * labels.view(-1, 1, 1, 1)
    return TensorDataset(images, labels)


def make_loader(number: int = 22, seed: int = 0, **options: Any) -> DataLoader[Any]:
    return DataLoader(make_samples(number, seed), **{"batch_size": 5, **options})


def measure_by_hand(
    model: nn.Module,
    layer: nn.Module,
    batches: Iterable[Any],
    take_input: bool = False,
    pool: Callable[[Tensor], Tensor] = lambda output: output.mean(dim=(2, 3)) if output.ndim == 4 else output,
) -> float:
    """NC1 of everything that a layer gives, by the oracle."""
    kept: list[Tensor] = []

    def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
        kept.append(pool((inputs[0] if take_input else output).float()))

    was_training = model.training
    model.eval()
    labels = []
    with torch.no_grad(), layer.register_forward_hook(hook):
        for images, target in batches:
            model(images)
            labels.append(target)
    model.train(was_training)
    return nc1(torch.cat(kept).double().numpy(), torch.cat(labels).numpy(), CLASSES)
