"""What every block of a backbone does to the classes of some data, and what tuning it would cost."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nc_finetune.backbones import PENULTIMATE, Backbone, watch_input, watch_outputs
from nc_finetune.data import ImageData
from nc_finetune.functional import SeparationLaw, closest_pairs, ncc_accuracy, separation_law
from nc_finetune.metrics import NeuralCollapse
from nc_finetune.selection.features import gradients_forgotten, require_one_label, subset_batches

_MEASURES, _BY_CLASS = ("nc1", "trace_ratio"), ("class_spread", "pair_cdnv")
CLOSEST = 5  # pairs of a layer


@dataclass(frozen=True)
class ClassMeasures:
    """What the pre-trained features of a layer say of single classes.

    Attributes:
        spread: Of each class over its squared distance to the nearest one, by name; see
            :func:`~nc_finetune.functional.class_collapse`.
        closest: CDNV of the closest pairs by ``<class>|<class>``, the closest first; see
            :func:`~nc_finetune.functional.pair_cdnv`.
    """

    spread: dict[str, float]
    closest: dict[str, float]


@dataclass(frozen=True)
class BlockMeasures:
    """What the pre-trained features of a layer say of the classes.

    Attributes:
        block: Name of the layer; the last one is ``"penultimate"``.
        nc1: ``tr(Sigma_W Sigma_B^+)`` on the training split.
        trace_ratio: ``tr Sigma_W / tr Sigma_B`` on the training split.
        ncc_accuracy: Share of validation images nearest to the training mean of their own class.
        classes: Of single classes, on the training split; ``None`` where that was not asked for.
    """

    block: str
    nc1: float
    trace_ratio: float
    ncc_accuracy: float
    classes: ClassMeasures | None = None


@dataclass(frozen=True)
class BlockCost:
    """What tuning one block costs.

    Attributes:
        block: Its name.
        tuned_percent: Parameters of block and head, in per cent of all.
        training_flops: Of one image, forward and backward, with everything before the block left without gradients.
        cached_flops: The same without what comes before the block, which a cache makes once.
        cache_bytes: What the input of the block takes for all training images, in the precision of the features.
    """

    block: str
    tuned_percent: float
    training_flops: int
    cached_flops: int
    cache_bytes: int


@torch.no_grad()
def measure_blocks(
    backbone: Backbone,
    data: ImageData,
    validate: bool = True,
    *,
    max_images: int | None = None,
    seed: int = 0,
    by_class: bool = False,
) -> list[BlockMeasures]:
    """Measure the output of every block and the penultimate feature, in one pass over each split.

    Args:
        backbone: The pre-trained network, on the device to compute on.
        data: Statistics come from the training split, nearest-class-centre accuracy from the validation split.
        validate: Look at the validation split; without it, or where it is empty, that accuracy is ``nan``.
        max_images: Of the training split so many are looked at; ``None`` is all.
        seed: Which of them.
        by_class: Also measure each class, and find the closest pairs.

    Returns:
        One entry a layer, in the order of the network.

    Raises:
        ValueError: If images have several labels.
    """
    require_one_label(data, "profiles of blocks")
    layers = (*backbone.block_names, PENULTIMATE)
    metrics: dict[str, NeuralCollapse] = {}
    device = next(backbone.parameters()).device
    backbone.eval()
    for images, labels in subset_batches(data, "train", max_images, seed):
        for layer, features in _outputs(backbone, layers, images.to(device)).items():
            if layer not in metrics:
                names = (*_MEASURES, *(_BY_CLASS if by_class else ()))
                metrics[layer] = NeuralCollapse(data.num_classes, features.shape[1], measures=names).to(device)
            metrics[layer].update(features.float(), labels.to(device))
    recognised = dict.fromkeys(metrics, 0.0)
    validation = len(data.val_set) if validate else 0
    for images, labels in data.eval_dataloader("val") if validation else ():
        for layer, features in _outputs(backbone, layers, images.to(device)).items():
            share = ncc_accuracy(features.float(), labels.to(device), metrics[layer].means)
            recognised[layer] += len(labels) * share.item()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*undefined and reported as nan")
        found = {layer: metric.compute() for layer, metric in metrics.items()}
    return [
        BlockMeasures(
            block=layer,
            nc1=found[layer]["nc1"].item(),
            trace_ratio=found[layer]["trace_ratio"].item(),
            ncc_accuracy=recognised[layer] / validation if validation else float("nan"),
            classes=_of_classes(found[layer], data.class_names) if by_class else None,
        )
        for layer in layers
        if layer in found
    ]


def _of_classes(found: Mapping[str, Tensor], names: Sequence[str]) -> ClassMeasures:
    pairs = closest_pairs(found["pair_cdnv"], CLOSEST)
    return ClassMeasures(
        dict(zip(names, found["class_spread"].tolist(), strict=True)),
        {f"{names[first]}|{names[second]}": value for first, second, value in pairs},
    )


def _outputs(backbone: Backbone, layers: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Return pooled outputs of blocks and the penultimate feature."""
    pooled: dict[str, Tensor] = {}

    def take(layer: str, output: Tensor) -> None:
        pooled.setdefault(layer, backbone.pool(output))

    with watch_outputs(backbone.model, [layer for layer in layers if layer != PENULTIMATE], take):
        penultimate = backbone(images)
    return {**pooled, PENULTIMATE: penultimate}


def law_of(profile: Iterable[BlockMeasures]) -> SeparationLaw:
    """Fit the separation law, the fall of ``log(tr Sigma_W / tr Sigma_B)`` by layer.

    Args:
        profile: Of the layers, in order.

    Returns:
        Slope and goodness of fit; ``nan`` where a layer is undefined.

    Source:
        He & Su 2023, A law of data separation in deep learning, 10.1073/pnas.2221704120.
    """
    return separation_law(torch.tensor([found.trace_ratio for found in profile], dtype=torch.float64))


def block_costs(backbone: Backbone, data: ImageData) -> list[BlockCost]:
    """Count what tuning each block would cost.

    Args:
        backbone: The network; its ``requires_grad`` flags are left as they were.
        data: Knows how large images are, and how many there are.

    Returns:
        One entry a block with parameters, in order.
    """
    blank = torch.zeros(1, 3, data.image_size, data.image_size, dtype=torch.uint8)
    images = blank.to(next(backbone.parameters()).device)
    head = nn.Linear(backbone.num_features, data.num_classes, device=images.device)
    total = sum(value.numel() for part in (backbone, head) for value in part.parameters())
    backbone.eval()
    inputs = _input_bytes(backbone, images)
    costs = []
    with gradients_forgotten(backbone):
        for block in backbone.block_names:
            tuned = list(backbone.get_layer(block).parameters())
            if not tuned:
                continue
            backbone.requires_grad_(False)
            for parameter in tuned:
                parameter.requires_grad_(True)
            counted = sum(value.numel() for part in (tuned, head.parameters()) for value in part)
            flops, before = _training_flops(backbone, head, images, block)
            cache = inputs.get(block, 0) * len(data.train_set)
            costs.append(BlockCost(block, 100 * counted / total, flops, flops - before, cache))
    return costs


def _input_bytes(backbone: Backbone, images: Tensor) -> dict[str, int]:
    """Return the size of what each block sees of the images."""
    sizes: dict[str, int] = {}

    def note(block: str, inputs: Any) -> None:
        if isinstance(inputs, Tensor):
            sizes.setdefault(block, inputs.numel() * inputs.element_size())

    with torch.no_grad(), ExitStack() as hooks:
        for block in backbone.block_names:
            hooks.enter_context(watch_input(backbone.get_layer(block), block, note, check=False))
        backbone(images)
    return sizes


def _training_flops(backbone: Backbone, head: nn.Module, images: Tensor, block: str) -> tuple[int, int]:
    """Return the operations of a training step, and of them those before the block."""
    before: list[int] = []
    counter = FlopCounterMode(display=False)
    handle = backbone.get_layer(block).register_forward_pre_hook(
        lambda _module, _inputs: before.append(counter.get_total_flops())
    )
    try:
        with counter, torch.enable_grad():
            head(backbone(images)).sum().backward()
    finally:
        handle.remove()
    return counter.get_total_flops(), before[0] if before else 0
