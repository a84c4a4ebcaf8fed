"""Predictions of a saved model for a folder of images, or for the images of a source that nobody has labelled."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import lightning as L

from nc_finetune.callbacks import Prediction, PredictionWriter, ProgressLines
from nc_finetune.data import UnlabelledFolder, UnlabelledSource
from nc_finetune.data.bad_images import OnBadImage
from nc_finetune.data.sources.folders import holds_tables_alone
from nc_finetune.data.sources.locations import BUILT_IN
from nc_finetune.data.sources.named_sets import is_named
from nc_finetune.deployment.load import load_model
from nc_finetune.doubt.state import NO_STATISTICS

DEFAULT_INTERPOLATION = "bicubic"


@dataclass(frozen=True)
class Predicted:
    """What a model says of images that nobody has labelled.

    Attributes:
        predictions: Of each image, in their order.
        skipped: Names of the images that did not decode.
        thumbnail: From a place among the predictions to a small PNG or JPEG file.
        multilabel: Whether an image may have several labels.
        knows_doubts: Whether the model has statistics of its training images.
        is_too_sure: Whether these were tuned on, so that new images look stranger than they are.
    """

    predictions: Sequence[Prediction]
    skipped: tuple[str, ...]
    thumbnail: Callable[[int], bytes] = field(repr=False)
    multilabel: bool
    knows_doubts: bool
    is_too_sure: bool


def predict_folder(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] = "predictions.csv",
    *,
    image_size: int | None = None,
    batch_size: int = 32,
    coverage: float | None = None,
    trust: bool = False,
    on_bad_image: OnBadImage = "raise",
    progress: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> tuple[str, ...]:
    """Write class probabilities of every image in a folder to a CSV file, or of the unlabelled images of a source.

    The columns are ``file`` (relative to the folder), ``label``, ``probability``, ``set``, ``unlike``, ``stranger`` and
    one column a class with its probability; of a model without statistics of its training images ``file``,
    ``prediction`` (the name of the most probable class, of a model for several labels all of them) and the classes. A
    class that is called as another column has ``class`` before its name there. See
    :class:`~nc_finetune.callbacks.PredictionWriter`.

    Args:
        model: As for :func:`~nc_finetune.deployment.load_model`.
        folder: Where the images are, in any depth. Or another source as for :func:`~nc_finetune.data.load_source`:
            tables, archives, a table of labels, a short name, an id of the hub. Of such a source those images are taken
            that have no label; all of them where each has one, or none.
        out: The CSV file.
        image_size: Height and width in pixels to which images are resized; ``None`` is what the model was fine-tuned
            on, or else what its weights were trained on.
        batch_size: Images a batch.
        coverage: How often the set is to hold the right class; ``None`` is 0.9 where there are sets.
        trust: As for :func:`~nc_finetune.load_delta`.
        on_bad_image: Images that do not decode end with an error (``"raise"``), or have no line (``"skip"``).
        progress: Show how far it has come: by a bar, or where there is no terminal by a line a minute.
        image_column: Column of the images in a table; ``None`` finds it.
        label_column: Column of the labels in a table, by which images without one are told; ``None`` finds it.

    Returns:
        The images that were skipped.

    Raises:
        ValueError: If a file cannot be read, the folder has no images, or a coverage is asked of a model without sets,
            or a column of a folder of images.
        FileNotFoundError: If there is no such model.
        NotADirectoryError: If there is no such folder.
    """
    return predict_images(
        model,
        folder,
        out,
        image_size=image_size,
        batch_size=batch_size,
        coverage=coverage,
        trust=trust,
        on_bad_image=on_bad_image,
        progress=progress,
        image_column=image_column,
        label_column=label_column,
    ).skipped


def predict_images(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] = "predictions.csv",
    *,
    image_size: int | None = None,
    batch_size: int = 32,
    coverage: float | None = None,
    trust: bool = False,
    on_bad_image: OnBadImage = "raise",
    progress: bool = False,
    need_doubts: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Predicted:
    """Do as :func:`predict_folder`, and return what was written.

    Args:
        model: As there.
        folder: Where the images are, or another source.
        out: The CSV file.
        image_size: Of the images; ``None`` is that of the model.
        batch_size: Images a batch.
        coverage: Of the sets.
        trust: As for :func:`~nc_finetune.load_delta`.
        on_bad_image: What becomes of images that do not decode.
        progress: Show how far it has come.
        need_doubts: Refuse a model without statistics of its training images, before anything is done.
        image_column: Column of the images in a table.
        label_column: Column of the labels in a table.

    Returns:
        The predictions.

    Raises:
        ValueError: As there.
        FileNotFoundError: As there.
        NotADirectoryError: As there.
    """
    is_folder = _is_folder_of_images(folder)
    if is_folder:
        _refuse_columns(folder, image_column=image_column, label_column=label_column)
    writer = PredictionWriter(out, coverage)
    classifier, config = load_model(model, trust=trust)
    if need_doubts and classifier.multilabel:
        raise ValueError(
            "strange images are told for models of one label an image, and this one knows several; leave the page out"
        )
    if need_doubts and classifier.doubt is None:
        raise ValueError(NO_STATISTICS)
    preprocessing = classifier.backbone.preprocessing
    of_source = partial(UnlabelledSource, image_column=image_column, label_column=label_column)
    data = (UnlabelledFolder if is_folder else of_source)(
        str(folder),
        config.class_names or [str(label) for label in range(config.num_classes)],
        image_size=image_size or config.image_size or preprocessing.image_size,
        interpolation=config.interpolation or DEFAULT_INTERPOLATION,
        batch_size=batch_size,
        on_bad_image=on_bad_image,
    )
    trainer = L.Trainer(
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=progress,
        enable_model_summary=False,
        callbacks=[writer, *([ProgressLines()] if progress and not sys.stderr.isatty() else [])],
    )
    trainer.predict(classifier, data, return_predictions=False)
    return Predicted(
        writer.predictions,
        data.skipped,
        data.thumbnail,
        multilabel=classifier.multilabel,
        knows_doubts=classifier.doubt is not None,
        is_too_sure=classifier.doubt is not None and classifier.doubt.is_too_sure,
    )


def _refuse_columns(folder: str | os.PathLike[str], **columns: str | None) -> None:
    if Path(folder).is_dir() and (given := [name for name, column in columns.items() if column is not None]):
        raise ValueError(
            f"{given[0]} is of a table, and {folder} is a folder of images, all of which are predicted; give the path"
            " of the table in it, or leave the column out"
        )


def _is_folder_of_images(source: str | os.PathLike[str]) -> bool:
    """Tell folders of images from other sources; what is not there at all is taken for such a folder."""
    path, name = Path(source), str(source)
    if path.is_dir():
        return not holds_tables_alone(path)
    is_name = name in BUILT_IN or is_named(name) or (name.count("/") == 1 and name[0] not in "./~")
    return not (path.exists() or is_name)
