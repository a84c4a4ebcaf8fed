"""Small networks that are pre-trained on CIFAR-100 in many ways, and kept as weights of timm's ResNet-18."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nc_finetune import ImageClassifier, ImageData
from nc_finetune._common.atomic_files import write_text_atomically
from nc_finetune.backbones import weights_hash
from nc_finetune.data import RandomCropFlip
from nc_finetune.heads.base import unit_length
from nc_finetune.losses import RescaledMSELoss
from nc_finetune.methods import FullFinetuning
from nc_finetune.run.specs import BackboneSpec

ARCHITECTURE = "resnet18"
WEIGHTS, FACTS = "weights.safetensors", "facts.json"


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How a network is pre-trained.

    Attributes:
        name: In tables, and of its folder.
        network: Options of timm's ``resnet18``; ``channels`` beside it replaces those.
        loss: A name of ``LOSSES``.
        projection: Hidden layers between the feature and the classifier, thrown away afterwards.
        scale: Least share of the area that a crop keeps; ``None`` augments nothing.
        epochs: Passes over the images.
        image_size: In pixels.
        batch_size: Images a step.
        learning_rate: Largest of the schedule.
    """

    name: str
    network: Mapping[str, Any] = field(default_factory=dict)
    channels: list[int] | None = None
    loss: str = "cross-entropy"
    projection: int = 0
    scale: float | None = 0.5
    epochs: int = 8
    image_size: int = 64
    batch_size: int = 256
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss of {self.name!r} must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if self.projection < 0 or self.epochs < 1:
            raise ValueError(f"{self.name!r} needs a projection of 0 or more layers and at least 1 epoch")

    def spec(self, weights: Path | None) -> BackboneSpec:
        """Return the network as a grid names it."""
        options = {**self.network, **({"channels": self.channels} if self.channels else {})}
        return BackboneSpec(name=ARCHITECTURE, weights=None if weights is None else str(weights), model_options=options)

    @property
    def parameters(self) -> int:
        """Number of parameters, without a classifier."""
        return sum(part.numel() for part in self.spec(None).build_without_memory().parameters())

    @property
    def stem(self) -> str:
        """The name as a folder can be called."""
        return self.name.replace(", ", "_").replace(" ", "_")


class ProjectionHead(nn.Sequential):
    """A perceptron between the feature and the classifier, of layers as wide as the feature.

    Source:
        Chen et al. 2020, SimCLR, arXiv:2002.05709.

    Example:
        >>> ProjectionHead(8, 3, 2)(torch.zeros(5, 8)).shape
        torch.Size([5, 3])
    """

    def __init__(self, in_features: int, out_features: int, layers: int) -> None:
        hidden = [part for _ in range(layers) for part in (nn.Linear(in_features, in_features), nn.ReLU())]
        super().__init__(*hidden, nn.Linear(in_features, out_features))
        self.in_features, self.out_features = in_features, out_features


class SupervisedContrastiveLoss(nn.Module):
    r"""Pull images of a class together on the sphere, and others apart.

    The mean over images that have another one of their class in the batch of
    ``-1/|P(i)| sum_{p in P(i)} log(exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a / t))``.

    Args:
        temperature: t, positive.

    Source:
        Khosla et al. 2020, Supervised contrastive learning, arXiv:2004.11362, equation 2; one view an image.

    Example:
        >>> loss, labels = SupervisedContrastiveLoss(), torch.tensor([0, 0, 1, 1])
        >>> apart = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
        >>> bool(loss(apart, labels) < loss(apart[[0, 2, 1, 3]], labels))
        True
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        unit = unit_length(embeddings)
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        logits = (unit @ unit.T / self.temperature).masked_fill(itself, -torch.inf)
        logs = logits.log_softmax(dim=1).masked_fill(itself, 0.0)
        positive = labels[:, None].eq(labels) & ~itself
        counts = positive.sum(dim=1)
        means = (logs * positive).sum(dim=1) / counts.clamp(min=1)
        return -means[counts > 0].mean() if bool(counts.any()) else embeddings.sum() * 0.0


LOSSES: dict[str, Callable[[], nn.Module]] = {
    "cross-entropy": nn.CrossEntropyLoss,
    "smoothing": partial(nn.CrossEntropyLoss, label_smoothing=0.1),
    "mse": partial(RescaledMSELoss, alpha=5.0, target=5.0),
    "contrastive": SupervisedContrastiveLoss,
}


def read_networks(settings: Mapping[str, Any]) -> list[Pretraining]:
    """Return the networks that settings describe.

    Raises:
        ValueError: If a network has a setting that is none.
    """
    found = []
    for name, own in settings["networks"].items():
        try:
            found.append(Pretraining(name=name, **{**settings["pretraining"], **own}))
        except TypeError as error:
            raise ValueError(f"network {name!r}: {error}") from error
    return found


def pretrain(wanted: Pretraining, source: str, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Train a network, unless that has been done.

    Args:
        wanted: How.
        source: Images, as for :class:`~nc_finetune.ImageData`.
        folder: Of the network alone; ``weights.safetensors`` and ``facts.json`` go there. Decoded images are kept
            beside it, for all networks.
        seed: Of weights, order and crops.

    Returns:
        The facts: settings, ``seconds``, ``loss`` of the last step and ``hash`` of the weights.

    Raises:
        ValueError: If what is there was trained by other settings.
    """
    weights, facts = folder / WEIGHTS, folder / FACTS
    settings = json.loads(json.dumps(asdict(wanted)))
    if facts.exists():
        known: dict[str, Any] = json.loads(facts.read_text())
        if known["settings"] != settings:
            raise ValueError(f"{facts} was trained by other settings; remove it, or name the network otherwise")
        return known
    L.seed_everything(seed, verbose=False)
    crop = None if wanted.scale is None else RandomCropFlip((wanted.scale, 1.0))
    options = {"image_size": wanted.image_size, "batch_size": wanted.batch_size, "val_size": 0}
    data = ImageData(source, seed=seed, batch_transform=crop, pixel_cache=folder.parent / "pixels", **options)
    data.setup("fit")
    model = ImageClassifier(
        wanted.spec(None).build(None),
        data.num_classes,
        method=FullFinetuning(batch_norm="train"),
        head=partial(ProjectionHead, layers=wanted.projection),
        loss=LOSSES[wanted.loss](),
        learning_rate=wanted.learning_rate,
        head_learning_rate=wanted.learning_rate,
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=wanted.epochs, limit_val_batches=0, num_sanity_val_steps=0, **quiet)
    start = time.perf_counter()
    trainer.fit(model, datamodule=data)
    folder.mkdir(parents=True, exist_ok=True)
    network = model.backbone.model.cpu()
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, weights)
    found = {
        "settings": settings,
        "seconds": round(time.perf_counter() - start, 1),
        "loss": round(float(trainer.callback_metrics["train/loss"]), 4),
        "hash": weights_hash(network),
        "data_fingerprint": data.fingerprint,
    }
    write_text_atomically(facts, json.dumps(found, indent=1))  # last: a network whose facts are there is done
    return found


def shortened(networks: list[Pretraining], epochs: int) -> list[Pretraining]:
    """Return networks that are trained for fewer epochs, to see whether all runs."""
    return [replace(network, epochs=min(network.epochs, epochs)) for network in networks]
