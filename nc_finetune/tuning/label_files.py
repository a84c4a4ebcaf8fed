"""The table and the page of suspected labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nc_finetune._common.atomic_files import write_text_atomically
from nc_finetune._common.csv_text import csv_text
from nc_finetune.data.corrections import image_key
from nc_finetune.report.labels_page import LabelsPage, Suspected, render_labels_page
from nc_finetune.tuning.doubts import Doubt, label_scores
from nc_finetune.tuning.images import thumbnail
from nc_finetune.tuning.label_command import label_command
from nc_finetune.tuning.labelled_pool import LabelledPool

TABLE, PAGE = "suspects.csv", "suspects.html"
_MOST_SHOWN = 200  # on the page, of some 25 kB each
_TYPICAL, _SMALL = 3, 80
_COLUMNS = ("split", "row", "file", "label", "probability_of_label", "suggested", "probability", "corrected", "image")
_ADVICE = (
    f"The column “corrected” of {TABLE} holds what is suggested: write another class there, or nothing where the label"
    " is right; then apply it. The images and their tables stay as they are."
)


def write_suspects(
    folder: Path, said: Sequence[str], pool: LabelledPool, found: Sequence[Doubt], logits: Tensor
) -> None:
    """Write both.

    Args:
        folder: Where to.
        said: What was found, and how, in sentences.
        pool: The images.
        found: Those to show, worst first.
        logits: Of all images, shape ``(N, K)``.
    """
    on_page = found[:_MOST_SHOWN]
    shown = {label for one in on_page for label in (one.label, one.suggested)}
    names, labels = pool.data.class_names, torch.tensor(pool.images.labels)
    typical = {
        names[label]: [thumbnail(pool.images, place, _SMALL) for place in places]
        for label, places in _typical(logits, labels, shown).items()
    }
    command = label_command(pool.data, apply=folder / TABLE)
    page = LabelsPage(
        f"Labels of {pool.data.source}",
        _summary(said, len(found)),
        suspects(pool, on_page, thumbnails=True),
        typical,
        [command] if found else [],
    )
    texts = {PAGE: render_labels_page(page), TABLE: _table(pool, found)}
    for name, text in texts.items():
        write_text_atomically(folder / name, text)


def _summary(said: Sequence[str], number: int) -> list[str]:
    more = [f"This page shows the first {_MOST_SHOWN}."] if number > _MOST_SHOWN else []
    return [*said, *more, *([_ADVICE] if number else [])]


def suspects(pool: LabelledPool, found: Sequence[Doubt], *, thumbnails: bool = False) -> list[Suspected]:
    """Return doubts in words."""
    names, files = pool.data.class_names, pool.files()
    return [
        Suspected(
            file=files[one.place],
            split=pool.places[one.place][0],
            label=names[one.label],
            given=one.given,
            suggested=names[one.suggested],
            probability=one.probability,
            thumbnail=thumbnail(pool.images, one.place) if thumbnails else b"",
        )
        for one in found
    ]


def _table(pool: LabelledPool, found: Sequence[Doubt]) -> str:
    lines = [
        [
            *pool.places[one.place],
            image.file,
            image.label,
            f"{image.given:.6f}",
            image.suggested,
            f"{image.probability:.6f}",
            image.suggested,
            image_key(pool.encoded(one.place)),
        ]
        for one, image in zip(found, suspects(pool, found), strict=True)
    ]
    return csv_text([_COLUMNS, *lines])


def _typical(logits: Tensor, labels: Tensor, classes: set[int]) -> Mapping[int, list[int]]:
    """Return the images of each class whose label is most probable by what the others teach."""
    scores = label_scores(logits, labels)
    order = scores.nan_to_num(-torch.inf).argsort(descending=True, stable=True)
    order = order[scores[order].isfinite()]
    return {label: order[labels[order] == label][:_TYPICAL].tolist() for label in sorted(classes)}
