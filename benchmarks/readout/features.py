"""Pooled outputs of every layer of a frozen network, taken once and kept in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nc_finetune.backbones import Backbone, create_backbone, watch_outputs
from nc_finetune.data import ImageData, LabelledImages, load_source, split_off

BATCH = 64


@dataclass(frozen=True)
class Setting:
    """A data set as it is measured.

    Attributes:
        name: Its name in results.
        source: As :class:`~nc_finetune.data.ImageData` takes it.
        pixels: Height and width of the images.
        per_class: Training images a class.
    """

    name: str
    source: str
    pixels: int
    per_class: int


@dataclass(frozen=True)
class Views:
    """One view of all images that a setting needs.

    Attributes:
        means: Of each layer over positions, by name, shapes ``(N, C)``; ``"penultimate"`` is the last.
        stds: Of each block over positions, likewise.
    """

    means: dict[str, Tensor]
    stds: dict[str, Tensor]


@dataclass(frozen=True)
class Features:
    """The features of a setting.

    Attributes:
        setting: Which one.
        labels: Shape ``(N,)``.
        plain: Of the images.
        mirrored: Of their mirror images.
        samples: Rows of each training sample.
        test: Rows of the test images, the same for all samples.
        held_out: Rows that each sample is judged by: the test images, and where these are few others that were not
            drawn.
    """

    setting: Setting
    labels: Tensor
    plain: Views
    mirrored: Views
    samples: tuple[Tensor, ...]
    test: Tensor
    held_out: tuple[Tensor, ...]

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks, in order."""
        return tuple(self.plain.stds)

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1


def features_of(
    setting: Setting,
    folder: Path,
    network: str = "tf_efficientnet_lite0",
    weights: str | None = "package",
    samples: int = 5,
    max_test_images: int = 1500,
) -> Features:
    """Read features from the folder, or take them and write them there."""
    name = f"{setting.name}_{setting.pixels}px_{setting.per_class}_{samples}_{max_test_images}_{network}.safetensors"
    path = folder / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        backbone = create_backbone(network, weights).eval().requires_grad_(False)
        tensors = _taken(backbone, setting, samples, max_test_images)
        save_file(tensors, partial, {"blocks": json.dumps(backbone.block_names), "source": setting.source})
        partial.rename(path)
    return _read(path, setting, samples)


class _Wanted:
    """Images that are needed, each once."""

    def __init__(self) -> None:
        self.places: dict[tuple[int, int], int] = {}
        self.images: list[tuple[LabelledImages, int]] = []

    def places_of(self, images: LabelledImages, items: Iterable[int] | None = None) -> Tensor:
        """Return places of items, all of them by default, and take in those that are new."""
        found = []
        for item in range(len(images)) if items is None else items:
            key = (id(images.table), images.indices[item])
            if key not in self.places:
                self.places[key] = len(self.images)
                self.images.append((images, item))
            found.append(self.places[key])
        return torch.tensor(found, dtype=torch.int64)

    def labels(self) -> Tensor:
        return torch.tensor([images.labels[item] for images, item in self.images])

    def batches(self) -> list[Tensor]:
        starts = range(0, len(self.images), BATCH)
        return [torch.stack([images[item][0] for images, item in self.images[at : at + BATCH]]) for at in starts]


def _taken(backbone: Backbone, setting: Setting, samples: int, max_test_images: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    wanted = _Wanted()
    source = load_source(setting.source)
    for seed in range(samples):
        data = ImageData(
            setting.source,
            image_size=setting.pixels,
            samples_per_class=setting.per_class,
            seed=seed,
            max_test_images=max_test_images,
        )
        data.data = source  # so that images of all samples are of the same tables
        found[f"sample/{seed}"] = wanted.places_of(data.train_set)
        found["test"] = wanted.places_of(data.test_set)
        more = _drawn(data.val_set, max_test_images - len(data.test_set))
        found[f"held_out/{seed}"] = torch.cat([found["test"], wanted.places_of(data.val_set, more)])
    images = wanted.batches()
    views = {"plain": images, "mirrored": (batch.flip(3) for batch in images)}
    pools = {f"{view}/{name}": part for view, each in views.items() for name, part in pooled(backbone, each).items()}
    return {**found, **pools, "labels": wanted.labels()}


def _drawn(images: LabelledImages, number: int) -> list[int]:
    """Return so many items, stratified, or all."""
    if number >= len(images):
        return list(range(len(images)))
    return split_off(images.labels, number, 0)[0].tolist() if number > 0 else []


@torch.inference_mode()
def pooled(backbone: Backbone, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return mean and std over positions of each block, and the penultimate feature; float32."""
    found: dict[str, list[Tensor]] = {}

    def take(layer: str, output: Tensor) -> None:
        positions = output.float().flatten(2)
        found.setdefault(f"mean/{layer}", []).append(positions.mean(2))
        found.setdefault(f"std/{layer}", []).append(positions.std(2, correction=0))

    with watch_outputs(backbone.model, backbone.block_names, take):
        for images in batches:
            found.setdefault("mean/penultimate", []).append(backbone(images).float())
    return {name: torch.cat(parts).contiguous() for name, parts in found.items()}


def _read(path: Path, setting: Setting, samples: int) -> Features:
    with safe_open(path, "pt") as file:
        blocks = json.loads(file.metadata()["blocks"])
        get: Callable[[str], Tensor] = file.get_tensor
        plain, mirrored = (
            Views(
                {layer: get(f"{view}/mean/{layer}") for layer in (*blocks, "penultimate")},
                {layer: get(f"{view}/std/{layer}") for layer in blocks},
            )
            for view in ("plain", "mirrored")
        )
        rows, held_out = (tuple(get(f"{name}/{seed}") for seed in range(samples)) for name in ("sample", "held_out"))
        return Features(setting, get("labels"), plain, mirrored, rows, get("test"), held_out)
