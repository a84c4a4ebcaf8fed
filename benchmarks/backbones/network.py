"""The network of a recipe, built in full with random weights, and what each method does to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import ImageClassifier, TimmBackbone
from nc_finetune.backbones import Backbone, FrozenPrefix, SplitError, create_backbone
from nc_finetune.backbones.open_clip_backbone import OpenClipBackbone
from nc_finetune.cli.recipes import find_recipe
from nc_finetune.files.delta import frozen_hash
from nc_finetune.methods import (
    AdapterTuning,
    BiasTuning,
    FinetuningMethod,
    FullFinetuning,
    LayerFinetuning,
    LayerReadout,
    LinearProbe,
    NormTuning,
    ProbeFirst,
    SideFinetuning,
    SkipConnectionFinetuning,
    SkipProbe,
)
from nc_finetune.methods.adapters import default_targets

SMALL_SIZE, CLASSES = 64, 2
# Adapters come last: they stay in the network.
METHODS: dict[str, Callable[[], FinetuningMethod]] = {
    "probe": LinearProbe,
    "skip probe": SkipProbe,
    "readout": lambda: LayerReadout("later_half"),
    "layer FT": LayerFinetuning,
    "SCL-FT": SkipConnectionFinetuning,
    "side FT": SideFinetuning,
    "LP-FT": lambda: ProbeFirst(LayerFinetuning(), probe_epochs=1),
    "full FT": FullFinetuning,
    "BitFit": BiasTuning,
    "norms": NormTuning,
    "LoRA": AdapterTuning,
    "LoHa": lambda: AdapterTuning("loha"),
    "LoKr": lambda: AdapterTuning("lokr"),
}


@dataclass(frozen=True)
class Network:
    """A backbone as its recipe builds it, with random weights.

    Attributes:
        recipe: Its name, without the folder.
        name: That of the network.
        weights: Those that the recipe asks for.
        backbone: It.
        image_size: Of the recipe.
        small: A size at which steps are cheap, if the network takes it, or that of the recipe.
    """

    recipe: str
    name: str
    weights: str
    backbone: Backbone
    image_size: int
    small: int

    @classmethod
    def of(cls, recipe: str) -> Network:
        """Build the network of a recipe."""
        content = yaml.safe_load(find_recipe(f"backbones/{recipe}").read_text(encoding="utf-8"))
        size = int(content["data"]["image_size"])
        torch.manual_seed(0)
        backbone, name, weights = _build(content["model"])
        small = backbone.nearest_size(SMALL_SIZE)
        return cls(recipe, name, weights, backbone.eval(), size, small if _takes(backbone, small) else size)

    def facts(self) -> list[str]:
        """Return the cells of the first table."""
        backbone = self.backbone
        return [
            f"`{self.recipe}`",
            f"{self.name}, {self.weights}",
            f"{_count(backbone) / 1e6:.1f}",
            str(backbone.num_features),
            f"{self.image_size}; {self._sizes()}",
            _pooled(backbone),
        ]

    def layers(self) -> list[str]:
        """Return the cells of the second table."""
        backbone = self.backbone
        *half, _penultimate = LayerReadout("later_half").layer_names(backbone)
        share = 100 * _count(backbone.get_layer(backbone.middle_block)) / _count(backbone)
        return [
            f"`{self.recipe}`",
            str(len(backbone.block_names)),
            f"{backbone.middle_block} ({share:.1f} %)",
            f"{half[0]} to {half[-1]}",
            _adapted(backbone),
        ]

    def _sizes(self) -> str:
        if self.small == self.image_size:
            return "no other"
        step = self.backbone.nearest_size(1)
        return "any" if step == 1 else f"multiples of {step}"

    def works(self) -> tuple[list[str], list[str]]:
        """Return the cells of the third table, and what did not work."""
        cells, notes = [f"`{self.recipe}`"], []
        for label, make in METHODS.items():
            try:
                cells.append(f"{self._tuned(make()):.2f}")
            except (RuntimeError, TypeError, ValueError) as error:
                cells.append("no")
                notes.append(f"- `{self.recipe}`, {label}: {error}")
            if label == "full FT":
                cut = self._cut()
                notes += [f"- `{self.recipe}`, cut: {cut}"] if cut else []
        return [*cells, "no" if any(", cut: " in note for note in notes) else "yes"], notes

    def _tuned(self, method: FinetuningMethod) -> float:
        torch.manual_seed(0)
        if isinstance(method, AdapterTuning):
            _without_adapters(self.backbone)
        model = ImageClassifier(self.backbone, CLASSES, method=method)
        frozen = frozen_hash(model)
        before = [value.detach().clone() for value in model.parameters() if value.requires_grad]
        _quiet_trainer().fit(model, DataLoader(_noise(self.small), batch_size=4))
        moved = [not torch.equal(old, new) for old, new in zip(before, _trained(model), strict=True)]
        if not (any(moved) or isinstance(method, LayerReadout)):
            raise ValueError("nothing that is tuned has moved")
        if frozen_hash(model) != frozen:
            raise ValueError("what is frozen has moved")
        return 100 * model.tuned_parameters / model.total_parameters

    def _cut(self) -> str:
        model = ImageClassifier(self.backbone, CLASSES, method=LayerFinetuning()).eval()
        try:
            FrozenPrefix(model, _noise(self.small).tensors[0])
        except SplitError as error:
            return str(error)
        return ""


def _build(model: Any) -> tuple[Backbone, str, str]:
    """Return a network with random weights, its name, and the weights that a recipe asks for."""
    if isinstance(model["backbone"], str):
        return create_backbone(model["backbone"], None), model["backbone"], model["weights"]
    options = model["backbone"]["init_args"]
    of_timm = model["backbone"]["class_path"].endswith(TimmBackbone.__name__)
    backbone = (TimmBackbone if of_timm else OpenClipBackbone)(**{**options, "weights": None})
    return backbone, f"{'' if of_timm else 'open_clip:'}{options['name']}", options["weights"]


def _trained(model: ImageClassifier) -> list[torch.Tensor]:
    return [value for value in model.parameters() if value.requires_grad]


def _without_adapters(backbone: Backbone) -> None:
    """Put the layers back in whose place the last method has put adapters."""
    for name, part in list(backbone.model.named_modules()):
        if hasattr(part, "base_layer"):
            backbone.model.set_submodule(name, part.base_layer)
    if hasattr(backbone.model, "peft_config"):
        del backbone.model.peft_config


def _noise(size: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 3, size, size), generator=generator, dtype=torch.uint8)
    return TensorDataset(images, torch.arange(4) % CLASSES)


@torch.inference_mode()
def _takes(backbone: Backbone, size: int) -> bool:
    try:
        backbone(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    except ValueError:
        return False
    return True


def _quiet_trainer() -> L.Trainer:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(max_epochs=1, logger=False, accelerator="cpu", **quiet)


def _pooled(backbone: Backbone) -> str:
    if backbone.has_class_token and backbone.num_prefix_tokens:
        return "class token"
    patches = backbone.nearest_size(1) > 1 and not backbone.maps_channels_last
    return "mean of patches" if patches else "mean of the map"


def _adapted(backbone: Backbone) -> str:
    """Name the layers of a block that adapters go to, as the block names them."""
    names = default_targets(backbone)
    if isinstance(backbone.get_layer(names[0]), torch.nn.Conv2d):
        return "1 x 1 convolutions"
    inside = {name: next(block for block in backbone.block_names if name.startswith(f"{block}.")) for name in names}
    return ", ".join(dict.fromkeys(name.removeprefix(f"{block}.") for name, block in inside.items()))


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
