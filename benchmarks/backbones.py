"""Which methods work on which network: each recipe of a backbone, built in full, tuned for a step by each method.

    python -m benchmarks.backbones                     # all, and write docs/backbones.md: some minutes, 8 GB of memory
    python -m benchmarks.backbones mobilenetv4_medium  # some, and print their lines

Weights are random, so nothing is fetched and no accuracy is told. A method works where a step on four images of random
pixels ends without an error, and moves weights that it tunes and no others, to the bit.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import ImageClassifier, TimmBackbone
from nc_finetune._common.atomic_files import write_text_atomically
from nc_finetune.backbones import Backbone, FrozenPrefix, SplitError, create_backbone
from nc_finetune.backbones.open_clip_backbone import OpenClipBackbone
from nc_finetune.cli.recipes import find_recipe, list_recipes
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

PAGE = Path(__file__).parents[1] / "docs/backbones.md"
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
INTRO = """\
# Backbones

```sh
nc-finetune fit backbones/dinov2_vit_s14 datasets/pets methods/side_ft
nc-finetune tune photos --backbones vit_small_patch14_dinov2 swinv2_tiny_window8_256
```

Any classification network of timm and any visual tower of open_clip is a backbone; these have a recipe
(`nc-finetune recipes`), which says the licence of its weights, too. `python -m benchmarks.backbones` writes this page:
it builds each of them in full, with random weights. Image sizes are that of the recipe and what else the network takes:
a transformer resamples its positions, a Swin pads its windows. Mean and standard deviation come with the weights.

"""
PARTS = """
## Layers

The key block is the one in the middle, which methods tune unless they name another; its share is of the network's
parameters. A readout looks at the later half, and at the feature that the classifier sees. LoRA goes to the layers that
are named, of every block.

"""
WORKS = f"""
## What works

Share of the parameters that each method tunes, in %, of a classifier of {CLASSES} classes; LoRA, LoHa and LoKr of rank
8. A number says that an epoch of one step on four images of random pixels, of LP-FT that of the first phase, ended
without an error, moved what is tuned, and left the rest as it was, to the bit. "cut" is the frozen part before the key
block, run once an image by `PrefixCache`. Zero-shot classification takes `clip_vit_b32_projected`; in the other towers
of CLIP the projection stands aside, and full FT leaves it as it is.

"""


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


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


FACTS = ["recipe", "network, weights", "M parameters", "feature", "image size, and others", "blocks pooled by"]
LAYERS = ["recipe", "blocks", "key block", "later half", "LoRA in"]
WORKED = ["recipe", *METHODS, "cut"]
_PARTS_OF_WORKED = (slice(1, 8), slice(8, None))  # as wide as a page
Measured = tuple[list[str], list[str], list[str], list[str]]


def recipe_names() -> list[str]:
    """Return the recipes of backbones, without their folder."""
    return [name.removeprefix("backbones/") for name in list_recipes() if name.startswith("backbones/")]


def measure(recipe: str) -> Measured:
    """Build a network and try the methods on it.

    Args:
        recipe: Name of its recipe, without the folder.

    Returns:
        Its cells in the three tables, and what did not work.
    """
    network = Network.of(recipe)
    facts, layers = network.facts(), network.layers()  # before there are adapters
    return facts, layers, *network.works()


def page(measured: list[Measured]) -> str:
    """Return the page about all networks."""
    facts, layers, works, notes = zip(*measured, strict=True)
    halves = (_table([WORKED[0], *WORKED[part]], [[row[0], *row[part]] for row in works]) for part in _PARTS_OF_WORKED)
    said = "\n".join(note for of_network in notes for note in of_network)
    text = INTRO + _table(FACTS, facts) + PARTS + _table(LAYERS, layers) + WORKS + "\n".join(halves)
    return text + (f"\n{said}\n" if said else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="recipes of backbones (default: all, and write the page)")
    given = parser.parse_args().recipes
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    measured = []
    for recipe in given or recipe_names():
        measured.append(measure(recipe))
        print(*measured[-1], sep="\n", flush=True)
    if not given:
        write_text_atomically(PAGE, page(measured))


if __name__ == "__main__":
    main()
