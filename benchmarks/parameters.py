"""What fine-tuning methods tune and what fixed heads save, in parameters, beside the figures of the slides.

    python benchmarks/parameters.py

The networks are built on the meta device: no weights are needed, and every count is the product's own
(``ImageClassifier.tuned_parameters`` and ``total_parameters``). Tuned = key block + head, total = backbone without its
original classifier + head. The slides print two decimals. Four of their cells are one unit beside the rounded share:
ViT-B/32 on Aircraft (8.185 cut off to 8.18), and CLIP on Aircraft (8.149; 8.156 if the head is left out of the total).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from nc_finetune import ImageClassifier
from nc_finetune.backbones import Backbone, create_backbone, narrow_features
from nc_finetune.heads import SimplexETFHead, ZeroShotHead
from nc_finetune.methods import FinetuningMethod, FullFinetuning, LayerFinetuning, LinearProbe, SkipConnectionFinetuning

CLASSES = {"CIFAR-10": 10, "CIFAR-100": 100, "Aircraft": 100, "DTD": 47, "Pet": 37}
NAMES = {
    "ResNet50": "resnet50",
    "ViT-B/32": "vit_base_patch32_224",
    "CLIP ViT-B/32": "open_clip:ViT-B-32-quickgelu",
}
METHODS: dict[str, Callable[[], FinetuningMethod]] = {
    "probe": LinearProbe,
    "layer FT": LayerFinetuning,
    "SCL-FT": SkipConnectionFinetuning,
}
# Percentages of the slides; layer FT and SCL-FT tune the same. CLIP has a zero-shot head where others have a probe.
SLIDES = {
    "ResNet50": {
        "CIFAR-10": ("0.09", "6.52"),
        "CIFAR-100": ("0.86", "7.24"),
        "Aircraft": ("0.86", "7.24"),
        "DTD": ("0.41", "6.82"),
        "Pet": ("0.32", "6.73"),
    },
    "ViT-B/32": {"Aircraft": ("0.09", "8.18"), "DTD": ("0.04", "8.14"), "Pet": ("0.03", "8.13")},
    "CLIP ViT-B/32": {"Aircraft": ("0.0", "8.16"), "DTD": ("0.0", "8.11"), "Pet": ("0.0", "8.10")},
}
SLIDES_SAVED = {
    "ResNet50, K = 1000": "8",
    "DenseNet169, K = 1000": "12",
    "ResNet18, d = 10": "21",
    "ResNet50, d = 10": "4.5",
}


def build(name: str, **options: str) -> Backbone:
    with torch.device("meta"):
        return create_backbone(name, None, **options)


def zero_shot_share(classes: int) -> float:
    """Return what is tuned behind CLIP's own embedding with a text head: nothing."""
    backbone = build(NAMES["CLIP ViT-B/32"], features="projected")
    embeddings = torch.ones(classes, backbone.num_features)
    head = partial(ZeroShotHead, embeddings=embeddings)
    return share(ImageClassifier(backbone, classes, method=LinearProbe(), head=head))


def share(model: ImageClassifier) -> float:
    return 100 * model.tuned_parameters / model.total_parameters


def tuned_shares() -> dict[tuple[str, str, str], float]:
    """Return the percentage tuned by backbone, data set and method."""
    shares = {}
    for backbone_name, columns in SLIDES.items():
        backbone = build(NAMES[backbone_name])
        for dataset in columns:
            classes = CLASSES[dataset]
            for method, create in METHODS.items():
                model = ImageClassifier(backbone, classes, method=create())
                shares[backbone_name, dataset, method] = share(model)
            if backbone_name.startswith("CLIP"):
                shares[backbone_name, dataset, "zero-shot"] = zero_shot_share(classes)
    return shares


def parameters(backbone: Backbone, classes: int, head: Callable[[int, int], nn.Module]) -> int:
    return ImageClassifier(backbone, classes, method=FullFinetuning(), head=head).total_parameters


def saved_shares() -> dict[str, float]:
    """Return the percentage that a fixed simplex-ETF head saves, alone and with the last convolution narrowed to K."""
    saved = {}
    for label, name in (("ResNet50", "resnet50"), ("DenseNet169", "densenet169")):
        backbone = build(name)
        learned, fixed = (parameters(backbone, 1000, head) for head in (nn.Linear, SimplexETFHead))
        saved[f"{label}, K = 1000"] = 100 * (1 - fixed / learned)
    for label, name in (("ResNet18", "resnet18"), ("ResNet50", "resnet50")):
        learned = parameters(build(name), 10, nn.Linear)
        narrow = parameters(narrow_features(build(name), 10), 10, SimplexETFHead)
        saved[f"{label}, d = 10"] = 100 * (1 - narrow / learned)
    return saved


def printed(shares: dict[tuple[str, str, str], float], backbone: str, dataset: str, method: str) -> str:
    """Return a cell: our percentage, and the slides' where it differs; empty where there is none."""
    if (backbone, dataset, method) not in shares:
        return ""
    value = shares[backbone, dataset, method]
    ours = f"{value:.1f}" if method == "zero-shot" else f"{value:.2f}"
    theirs = slides_cell(backbone, dataset, method)
    return ours if theirs in (None, ours) else f"{ours} ({theirs})"


def slides_cell(backbone: str, dataset: str, method: str) -> str | None:
    """Return the slides' cell; they have no linear probe of CLIP."""
    probe, layer = SLIDES[backbone][dataset]
    untuned = "zero-shot" if backbone.startswith("CLIP") else "probe"
    return {untuned: probe, "layer FT": layer, "SCL-FT": layer}.get(method)


def main() -> None:
    console = Console(width=150)
    shares = tuned_shares()
    columns = [(backbone, dataset) for backbone, row in SLIDES.items() for dataset in row]
    heads = (f"{backbone}\n{dataset}" for backbone, dataset in columns)
    table = Table("", *heads, title="parameters tuned, % (in brackets: the slides, where they differ)", box=None)
    for method in ("zero-shot", *METHODS):
        table.add_row(method, *(printed(shares, *column, method) for column in columns))
    console.print(table)
    table = Table("", "saved %", "slides", title="\nparameters that fixed simplex-ETF heads save", box=None)
    for label, value in saved_shares().items():
        table.add_row(label, f"{value:.2f}", SLIDES_SAVED[label])
    console.print(table)


if __name__ == "__main__":
    main()
