"""The six sets that are strangers to each other, and some images of each at the size of another one."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.reliability import features as taking
from benchmarks.reliability.features import BATCH, LAYERS, SETS, Features, Setting
from nc_finetune import ImageData
from nc_finetune.backbones import create_backbone
from nc_finetune.methods import LayerReadout

SIX = {
    **{name: SETS[name] for name in ("digits", "cifar10", "dtd10")},
    "caltech101": Setting("caltech100", "caltech101", 128, 20, shared=True),
    "pacs_photo": Setting("pacs-photo", "pacs_photo", 128, 40),
    "cifar100": Setting("cifar100-jpeg", "cifar100", 64, 20, shared=True),
}
FEW = 20  # images a class, in tables of sets and of calibration
_STRANGERS = 300  # images of another set


def strangers(name: str, known: Features, pixels: int, data: Path, folder: Path) -> Tensor:
    """Return features of images of a set as a model sees them that takes images of so many pixels, shape ``(300, D)``.

    Args:
        name: Of the set.
        known: Its own features.
        pixels: Height and width.
        data: Folder of data sets.
        folder: Where features are kept.
    """
    setting = SIX[name]
    if setting.pixels == pixels:
        return known.values[known.held_out(0)[:_STRANGERS]]
    path = folder / "features" / f"{setting.name}_{pixels}px_strangers.safetensors"
    if not path.exists():
        partial = path.with_suffix(".partial")
        save_file({"values": _taken(setting, pixels, data)}, partial)
        partial.replace(path)
    return load_file(path)["values"]


@torch.inference_mode()
def _taken(setting: Setting, pixels: int, data: Path) -> Tensor:
    images = ImageData(setting.source(data), image_size=pixels, val_size=0, test_size=0).images("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:_STRANGERS]
    backbone = create_backbone(taking.NETWORK, taking.WEIGHTS).eval().requires_grad_(False)
    method = LayerReadout(LAYERS).eval()
    parts = [torch.stack([images[item][0] for item in some.tolist()]) for some in torch.split(order, BATCH)]
    return torch.cat([method.features(backbone, part) for part in parts])
