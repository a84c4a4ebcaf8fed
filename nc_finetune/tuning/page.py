"""What the page about a tuning says: measured once the model is there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

import torch
from torch import Tensor

from nc_finetune.backbones import Backbone, weights_hash
from nc_finetune.classifier import ImageClassifier
from nc_finetune.data import ImageData
from nc_finetune.functional import class_collapse, nc1, temperature
from nc_finetune.metrics import calibration_error
from nc_finetune.report.tuned_page import ClassRow, Compared, Confused, Doubtful, TunedPage
from nc_finetune.selection.features import method_features, subset_batches
from nc_finetune.selection.profile import measure_blocks
from nc_finetune.tuning.doubts import doubts
from nc_finetune.tuning.estimate import estimate_accuracy
from nc_finetune.tuning.folder import MODEL
from nc_finetune.tuning.images import name_of, thumbnail
from nc_finetune.tuning.judged import Judged, common_places, right
from nc_finetune.tuning.readouts import FOLDS
from nc_finetune.tuning.work import MEASURED, Work

_SHOWN_IMAGES, _SHOWN_CLASSES, _SHOWN_PAIRS = 12, 20, 8
_PICTURED, _PICTURES = 8, 3  # classes, and images of each
_TIMED = 64  # images
_FEWEST = 2  # images to find a temperature by, and to try it on
_HEAD = "seen by the head"


def describe(
    title: str,
    summary: Sequence[str],
    work: Work,
    best: Judged,
    model: ImageClassifier,
    backbone: Backbone,
    commands: Sequence[str],
) -> TunedPage:
    """Measure what the page shows.

    Args:
        title: Of the page.
        summary: Sentences.
        work: Images, and what was judged.
        best: What was chosen.
        model: The classifier that came of it, and is saved.
        backbone: The network as it was pre-trained.
        commands: What to type next.
    """
    data, labels = work.data, work.labels
    logits = best.logits if best.readout is None else best.readout.logits
    batches = list(subset_batches(data, "train", MEASURED, work.seed))
    features, drawn = method_features(model.method, model.backbone, batches)
    features, drawn = features.cpu(), drawn.cpu()
    return TunedPage(
        title=title,
        summary=summary,
        compared=_compared(work, best),
        left_out=work.left_out,
        nc1=_nc1_by_state(best, model, backbone, data, features, drawn, work.seed),
        classes=_class_rows(data, logits, labels, features, drawn),
        pairs=_confused(data, logits, labels),
        doubtful=doubtful_labels(data, logits, labels),
        commands=commands,
        facts={**_facts(best, model, backbone, work, batches), **calibration_fact(logits, labels)},
    )


def _compared(work: Work, best: Judged) -> list[Compared]:
    common = common_places(work.judged)
    if not len(common):
        return []
    found = [estimate_accuracy([right(one.logits, work.labels)[common]], folds=FOLDS) for one in work.judged]
    return [
        Compared(one.name, one.image_size, score.accuracy, score.low, score.high, one.seconds, one is best)
        for one, score in zip(work.judged, found, strict=True)
    ]


def _nc1_by_state(
    best: Judged,
    model: ImageClassifier,
    backbone: Backbone,
    data: ImageData,
    features: Tensor,
    drawn: Tensor,
    seed: int,
) -> dict[str, dict[str, float]]:
    before = _layers(backbone, data, seed)
    seen = nc1(features, torch.unique(drawn, return_inverse=True)[1]).item()
    if best.readout is not None:
        return {"pre-trained": {**before, _HEAD: seen}}
    return {"pre-trained": before, "tuned": {**_layers(model.backbone, data, seed), _HEAD: seen}}


def _layers(backbone: Backbone, data: ImageData, seed: int) -> dict[str, float]:
    try:
        found = measure_blocks(backbone, data, validate=False, max_images=MEASURED, seed=seed)
    except (TypeError, ValueError):  # outputs of blocks that cannot be pooled
        return {}
    return {layer.block: layer.nc1 for layer in found}


def _class_rows(data: ImageData, logits: Tensor, labels: Tensor, features: Tensor, drawn: Tensor) -> list[ClassRow]:
    collapse = class_collapse(features, drawn, data.num_classes)
    known = logits.isfinite().all(1)
    correct = right(logits, labels)
    rows = []
    for label, name in enumerate(data.class_names):
        own = known & (labels == label)
        if collapse.nearest[label] < 0 or not own.any():
            continue
        rows.append(
            ClassRow(
                name,
                int((labels == label).sum()),
                correct[own].double().mean().item(),
                collapse.spread[label].item(),
                data.class_names[int(collapse.nearest[label])],
            )
        )
    rows = sorted(rows, key=lambda row: -row.spread)[:_SHOWN_CLASSES]
    sure = -torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    for place, row in enumerate(rows[:_PICTURED]):
        own = (known & (labels == data.class_names.index(row.name))).nonzero().squeeze(1)
        rows[place] = replace(row, shown=_thumbnails(data, own[sure[own].argsort()]))
    return rows


def _thumbnails(data: ImageData, places: Tensor) -> list[bytes]:
    return [thumbnail(data.images("train"), place) for place in places[:_PICTURES].tolist()]


def _confused(data: ImageData, logits: Tensor, labels: Tensor) -> list[Confused]:
    known = logits.isfinite().all(1)
    taken = logits.argmax(1)
    wrong = known & (taken != labels)
    pairs = Counter(zip(labels[wrong].tolist(), taken[wrong].tolist(), strict=True))
    names = data.class_names
    found = []
    for (label, other), number in pairs.most_common(_SHOWN_PAIRS):
        places = (wrong & (labels == label) & (taken == other)).nonzero().squeeze(1)
        found.append(Confused(names[label], names[other], number, _thumbnails(data, places)))
    return found


def doubtful_labels(data: ImageData, logits: Tensor, labels: Tensor, most: int = _SHOWN_IMAGES) -> list[Doubtful]:
    """Return training images that models which were not trained on them are sure to be of another class, worst first.

    Args:
        data: The images.
        logits: Of each training image by such a model, shape ``(N, K)``; ``nan`` where there is none.
        labels: Shape ``(N,)``.
        most: How many at the most.
    """
    images, names = data.images("train"), data.class_names
    return [
        Doubtful(
            name_of(images, one.place),
            names[one.label],
            names[one.suggested],
            one.probability,
            thumbnail(images, one.place),
        )
        for one in doubts(logits, labels, most)
    ]


def _facts(
    best: Judged,
    model: ImageClassifier,
    backbone: Backbone,
    work: Work,
    batches: Sequence[tuple[Tensor, Tensor]],
) -> dict[str, str]:
    data, size = work.data, (work.folder.path / MODEL).stat().st_size
    share = 100 * model.tuned_parameters / model.total_parameters
    counts = [count for count in data.class_counts if count]
    packages = ("nc-finetune", "torch", "lightning", "timm")
    return {
        "images": f"{len(data.images('train')):,} of {len(counts)} classes, {min(counts)} to {max(counts)} a class",
        "network": f"{backbone.name}, {model.total_parameters:,} parameters, of which {share:.2f} % are not the"
        " pre-trained ones",
        "prediction": f"{1000 * _seconds_an_image(model, batches):.1f} ms an image on {model.device.type}, at"
        f" {best.image_size} pixels, {torch.get_num_threads()} threads",
        "model file": f"{size / 1e6:.2f} MB, beside the pre-trained weights",
        "weights": f"SHA-256 {weights_hash(backbone.model)}",
        "data": f"{data.source}, fingerprint {data.fingerprint}",
        "seed": str(work.seed),
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
    }


def calibration_fact(logits: Tensor, labels: Tensor) -> dict[str, str]:
    """Say how far probabilities are from shares of right answers, before and after one temperature.

    Args:
        logits: Of training images by models that were not trained on them, shape ``(N, K)``; ``nan`` where there is
            none.
        labels: Shape ``(N,)``.

    Returns:
        One fact: the error at the temperature is of each half of the images at that of the other half; none for fewer
        than two images.

    Example:
        >>> logits = 9 * torch.eye(2).repeat(50, 1)
        >>> labels = torch.tensor([0, 1] * 45 + [1, 0] * 5)  # sure, and right nine times of ten
        >>> calibration_fact(logits, labels)["calibration"][:51]
        'an error of 10.0 % as the head gives probabilities,'
    """
    known = logits.isfinite().all(1)
    logits, labels = logits[known], labels[known]
    if len(labels) < _FEWEST:
        return {}
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    halves = order.tensor_split(2)
    other = [temperature(logits[half], labels[half]) for half in reversed(halves)]
    tempered = torch.cat([logits[half] / value for half, value in zip(halves, other, strict=True)])
    before, after = calibration_error(logits, labels), calibration_error(tempered, labels[order])
    return {
        "calibration": f"an error of {100 * before:.1f} % as the head gives probabilities, {100 * after:.1f} % at one"
        " temperature that other images chose, each image by what others teach"
    }


@torch.inference_mode()
def _seconds_an_image(model: ImageClassifier, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    images = batches[0][0][:_TIMED].to(model.device)
    model(images)  # warm up
    start = time.perf_counter()
    model(images).cpu()
    return (time.perf_counter() - start) / len(images)
