"""The page about the networks that have a recipe: docs/backbones.md."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.backbones.network import CLASSES, METHODS, Network
from nc_finetune.cli.recipes import list_recipes

PAGE = Path(__file__).parents[2] / "docs/backbones.md"
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
