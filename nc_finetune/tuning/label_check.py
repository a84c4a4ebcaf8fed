"""Which labels of a source may be wrong: one pass, each image by what others teach; a table and a page."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from nc_finetune._common.quiet import quietly
from nc_finetune.backbones import Backbone
from nc_finetune.data import ImageData, TrainingFold, training_folds
from nc_finetune.data.corrections import check_new_folder
from nc_finetune.report import check_report_extra
from nc_finetune.report.labels_page import Suspected
from nc_finetune.tuning.doubts import doubts
from nc_finetune.tuning.first_answers import build_network, first_size
from nc_finetune.tuning.images import Hashes, check_images, hashes_of, listed, never_parted
from nc_finetune.tuning.label_files import PAGE, TABLE, suspects, write_suspects
from nc_finetune.tuning.labelled_pool import LabelledPool
from nc_finetune.tuning.pipeline import DEFAULT_BACKBONE
from nc_finetune.tuning.readouts import FOLDS, good_places, most_folds, read_out


@dataclass(frozen=True)
class LabelCheck:
    """What was found.

    Attributes:
        suspected: Images whose label may be wrong, worst first, without thumbnails.
        differing: How many images are most probably of another class than their own, whether they are listed or not.
        judged: How many were looked at.
        table: The CSV file.
        page: The HTML file.
    """

    suspected: list[Suspected] = field(repr=False)
    differing: int
    judged: int
    table: Path
    page: Path

    def __str__(self) -> str:
        if not self.differing:
            return f"None of {self.judged:,} images looks more like another class than its own."
        return (
            f"{self.differing:,} of {self.judged:,} images look more like another class than their own, by what"
            f" other images teach: wrong labels, or hard images. The {len(self.suspected):,} most suspected are listed."
        )


def check_labels(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] = "labels",
    *,
    backbone: str = DEFAULT_BACKBONE,
    image_size: int | None = None,
    most: int = 100,
    batch_size: int = 32,
    image_column: str | None = None,
    label_column: str | None = None,
    group: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> LabelCheck:
    """Find labels that are probably wrong, in one pass through a frozen network; nothing is trained.

    The labelled images of all splits are pooled, and each is classified by the closed-form readout of all the others
    (:class:`~nc_finetune.methods.LayerReadout`), so that no label speaks for itself. Copies of an image, and images of
    a group, do not speak for each other: with groups each image, and without them each that has a copy, is classified
    by those outside of its fold alone. There are up to 20 folds of 400 images, 10 of 1,000 and 3 of more; for copies
    without groups up to 3, and the other images of up to 1,000 are then classified a few at a time.

    The less probable the given label, the higher the image stands in the table.
    Its column ``corrected`` holds what is suggested, to be edited and given to
    :func:`~nc_finetune.data.corrections.apply_corrections`.

    Args:
        source: Labelled images, as for :class:`~nc_finetune.ImageData`.
        out: Folder of ``suspects.csv`` and ``suspects.html``; it must not be there, or be empty.
        backbone: Pre-trained network, ``"name=weights"`` or ``"name"``.
        image_size: Height and width to which images are resized; ``None`` is that of typical ones, from 64 to 128.
        most: How many images the table and the page hold at the most.
        batch_size: Images a step.
        image_column: Of a table; ``None`` finds it.
        label_column: Likewise.
        group: Column, or pattern of file names, of images that do not judge each other.
        tell: Called with each line of progress.

    Returns:
        What was found.

    Raises:
        ValueError: If images, folder, network or arguments cannot be used, images have several labels, or no class has
            two.
        FileNotFoundError: If the source is a path and nothing is there.
        ImportError: If the extra ``report`` is not installed.

    Example:
        >>> import tempfile
        >>> found = check_labels("sklearn:digits", tempfile.mkdtemp(), backbone="test_resnet=null", image_size=32)
        >>> found.judged, found.table.name
        (1797, 'suspects.csv')
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    check_report_extra()
    folder = Path(out)
    options = {"image_column": image_column, "label_column": label_column, "group": group}
    with quietly() as notes:
        pool = LabelledPool.of(str(source), batch_size=batch_size, **options)
        check_new_folder(folder, str(source))
        tell(str(pool))
        network = build_network(backbone)
        pool.data.image_size = first_size(pool.data, network, image_size)
        hashes = hashes_of(pool.data, None)
        logits = _logits(network, pool, hashes)
        partly = _judged_partly(pool.data, hashes)
        for note in (*notes, *check_images(pool.data, None, hashes), *partly, *_not_judged(pool, logits)):
            tell(f"note: {note}")
    every = doubts(logits, torch.tensor(pool.images.labels))
    listed, judged = every[:most], int(logits.isfinite().all(1).sum())
    found = LabelCheck(suspects(pool, listed), len(every), judged, folder / TABLE, folder / PAGE)
    write_suspects(folder, [str(found), *(f"{note[0].upper()}{note[1:]}." for note in partly)], pool, listed, logits)
    tell(str(found))
    return found


def _logits(network: Backbone, pool: LabelledPool, hashes: Hashes) -> Tensor:
    """Return logits of each image by a readout of all others; of copies, and with groups, of those outside its fold."""
    data = pool.data
    bound = never_parted(data.train_groups, hashes.train)
    if data.train_groups is not None:
        return read_out(network, data, training_folds(data, FOLDS, groups=bound), bound).logits
    if bound is None:
        return read_out(network, data).logits
    shared = {name for name, number in Counter(bound).items() if number > 1}
    found = read_out(network, data, _folds_of(data, bound))
    copied = torch.tensor([name in shared for name in bound])
    return torch.where(copied.unsqueeze(1), found.fold_logits, found.logits)


def _folds_of(data: ImageData, copies: Sequence[str]) -> list[TrainingFold]:
    try:
        return training_folds(data, FOLDS, groups=copies)
    except ValueError:  # hardly anything but copies: these are not judged, which is said
        return []


def _judged_partly(data: ImageData, hashes: Hashes) -> list[str]:
    """Say which images are not judged by all others, a sentence, or nothing."""
    if data.train_groups is not None:
        number = most_folds(len(good_places(data)))
        return [
            f"each image is judged by those outside of its fold alone, one of {number} at the most, since no fold parts"
            " a group, or copies of an image"
        ]
    copied = sum(number for digest, number in Counter(hashes.train).items() if digest and number > 1)
    if not copied:
        return []
    return [
        f"{copied:,} images are copies of one another, and judged by those outside of their fold alone, one of {FOLDS}"
        " at the most"
    ]


def _not_judged(pool: LabelledPool, logits: Tensor) -> list[str]:
    """Say which images nothing can be said of, a sentence a cause."""
    found, bad = [], pool.data.bad_images()
    if bad:
        found.append(f"{len(bad):,} images do not decode and are left out: {listed([str(one) for one in bad])}")
    decoded = torch.zeros(len(logits), dtype=torch.bool)
    decoded[good_places(pool.data)] = True
    alone = (decoded & ~logits.isfinite().all(1)).nonzero().squeeze(1).tolist()
    if alone:
        labels, names = pool.images.labels, pool.data.class_names
        said = listed(sorted({names[labels[place]] for place in alone}))
        found.append(
            f"of {len(alone):,} images nothing can be said, since without them, and their copies, their class has none:"
            f" {said}"
        )
    return found
