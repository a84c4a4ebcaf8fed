"""What a readout of the later half of the layers sees of the images of a set; taken once, and kept in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nc_finetune import ImageData
from nc_finetune.backbones import create_backbone
from nc_finetune.methods import LayerReadout

NETWORK, WEIGHTS, LAYERS = "tf_efficientnet_lite0", "package", "later_half"
SAMPLES, HELD_OUT, BATCH = 5, 1500, 64


@dataclass(frozen=True)
class Setting:
    """A set of images as it is measured.

    Attributes:
        name: Its name in results.
        folder: Its folder below ``--data``, or a name that :class:`~nc_finetune.ImageData` knows.
        pixels: Height and width of the images.
        each: Training images a class, or what there is.
        shared: Whether all samples have the same training images, for want of others.
        samples: How many samples there are.
    """

    name: str
    folder: str
    pixels: int
    each: int
    shared: bool = False
    samples: int = SAMPLES

    def source(self, data: Path) -> str:
        return self.folder if ":" in self.folder else str(data / self.folder)


SETS = {
    "digits": Setting("digits", "sklearn:digits", 64, 40),
    "cifar10": Setting("cifar10-jpeg", "cifar10", 64, 40),
    "dtd10": Setting("dtd10", "dtd10", 128, 40),
    "cifar10-100": Setting("cifar10-jpeg", "cifar10", 64, 100),
    "caltech101": Setting("caltech100", "caltech101", 128, 40, shared=True, samples=3),
}


@dataclass(frozen=True)
class Features:
    """Features and labels of all images that are needed of a set.

    Attributes:
        values: Shape ``(N, D)``, float32.
        labels: Shape ``(N,)``.
        samples: Rows of each training sample.
    """

    values: Tensor
    labels: Tensor
    samples: tuple[Tensor, ...]

    @cached_property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def held_out(self, seed: int) -> Tensor:
        """Return rows that are not in a sample, the last first: those that are in none."""
        outside = torch.ones(len(self.labels), dtype=torch.bool)
        outside[self.samples[seed]] = False
        return outside.nonzero().squeeze(1).flip(0)[:HELD_OUT]


def features_of(setting: Setting, data: Path, folder: Path) -> Features:
    """Read features from the folder, or take them and write them there."""
    path = folder / "features" / f"{setting.name}_{setting.pixels}px_{setting.each}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(_taken(setting, data), partial)
        partial.replace(path)
    found = load_file(path)
    return Features(found["values"], found["labels"], tuple(found[f"sample/{seed}"] for seed in range(setting.samples)))


@torch.inference_mode()
def _taken(setting: Setting, data: Path) -> dict[str, Tensor]:
    images = ImageData(setting.source(data), image_size=setting.pixels, val_size=0, test_size=0).images("train")
    labels = torch.tensor(images.labels)
    samples = [draw(labels, setting.each, 0 if setting.shared else seed) for seed in range(setting.samples)]
    drawn = torch.cat(samples).unique()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SAMPLES))
    rows = torch.cat([drawn, order[~torch.isin(order, drawn)][:HELD_OUT]])
    place = torch.full((len(labels),), -1).scatter(0, rows, torch.arange(len(rows)))
    backbone, method = create_backbone(NETWORK, WEIGHTS).eval().requires_grad_(False), LayerReadout(LAYERS).eval()
    found = [
        method.features(backbone, torch.stack([images[item][0] for item in some.tolist()]))
        for some in torch.split(rows, BATCH)
    ]
    every = {f"sample/{seed}": place[sample] for seed, sample in enumerate(samples)}
    return {"values": torch.cat(found), "labels": labels[rows], **every}


def draw(labels: Tensor, each: int, seed: int) -> Tensor:
    """Return rows of so many images of each class, or of all that there are, in rising order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    found = [order[labels[order] == label][:each] for label in range(int(labels.max()) + 1)]
    return torch.cat(found).sort().values
