"""Predictions of a saved model for a folder of images, or for the images of a source that nobody has labelled."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lightning as L

from nc_finetune.callbacks import PredictionWriter, ProgressLines
from nc_finetune.data import UnlabelledFolder, UnlabelledSource
from nc_finetune.data.bad_images import OnBadImage
from nc_finetune.data.sources.folders import holds_tables_alone
from nc_finetune.data.sources.locations import BUILT_IN
from nc_finetune.data.sources.named_sets import is_named
from nc_finetune.deployment.load import load_model

DEFAULT_INTERPOLATION = "bicubic"


def predict_folder(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] = "predictions.csv",
    *,
    image_size: int | None = None,
    batch_size: int = 32,
    trust: bool = False,
    on_bad_image: OnBadImage = "raise",
    progress: bool = False,
) -> tuple[str, ...]:
    """Write class probabilities of every image in a folder to a CSV file, or of the unlabelled images of a source.

    The columns are ``file`` (relative to the folder), ``prediction`` (the name of the most probable class) and one
    column a class with its probability; of a model for several labels, ``prediction`` names all of them, see
    :class:`~nc_finetune.callbacks.PredictionWriter`.

    Args:
        model: A delta (``.safetensors``) or a checkpoint (``.ckpt``).
        folder: Where the images are, in any depth. Or another source as for :func:`~nc_finetune.data.load_source`:
            tables, archives, a table of labels, a short name, an id of the hub. Of such a source those images are taken
            that have no label; all of them where each has one, or none.
        out: The CSV file.
        image_size: Height and width in pixels to which images are resized; ``None`` is what the model was fine-tuned
            on, or else what its weights were trained on.
        batch_size: Images a batch.
        trust: As for :func:`~nc_finetune.load_delta`.
        on_bad_image: Images that do not decode end with an error (``"raise"``), or have no line (``"skip"``).
        progress: Show how far it has come: by a bar, or where there is no terminal by a line a minute.

    Returns:
        The images that were skipped.

    Raises:
        ValueError: If a file cannot be read, or the folder has no images.
        FileNotFoundError: If there is no such model.
        NotADirectoryError: If there is no such folder.
    """
    classifier, config = load_model(model, trust=trust)
    preprocessing = classifier.backbone.preprocessing
    found = UnlabelledFolder if _is_folder_of_images(folder) else UnlabelledSource
    data = found(
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
        callbacks=[PredictionWriter(out), *([ProgressLines()] if progress and not sys.stderr.isatty() else [])],
    )
    trainer.predict(classifier, data, return_predictions=False)
    return data.skipped


def _is_folder_of_images(source: str | os.PathLike[str]) -> bool:
    """Tell folders of images from other sources; what is not there at all is taken for such a folder."""
    path, name = Path(source), str(source)
    if path.is_dir():
        return not holds_tables_alone(path)
    is_name = name in BUILT_IN or is_named(name) or (name.count("/") == 1 and name[0] not in "./~")
    return not (path.exists() or is_name)
