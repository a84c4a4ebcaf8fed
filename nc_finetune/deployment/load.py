"""Models from files: onto a given model, or built from what the file says."""

from __future__ import annotations

import os
from pathlib import Path

from nc_finetune.classifier import ImageClassifier
from nc_finetune.classifier.checkpoint import load_state, model_arguments, read_checkpoint, take_layers
from nc_finetune.deployment.hub import MODEL_FILE, local_model
from nc_finetune.files.delta import apply_delta, read_delta
from nc_finetune.files.delta import save_delta as save_delta
from nc_finetune.files.delta_io import CHECKPOINT_KEY, DELTA_SUFFIX
from nc_finetune.files.model_config import ModelConfig

CHECKPOINT_SUFFIX = ".ckpt"


def load_delta(
    path: str | os.PathLike[str], model: ImageClassifier | None = None, *, trust: bool = False
) -> ImageClassifier:
    """Load a delta; the logits are then those of the model that it was saved from, bit for bit.

    Args:
        path: What :func:`save_delta` or :class:`~nc_finetune.callbacks.DeltaCheckpoint` wrote, or a folder of
            :func:`~nc_finetune.tune`, or, on the Hugging Face hub (extra ``hub``), ``"hub:user/name"`` or
            ``"hub:user/name@revision"``; the same is trusted of all.
        model: A model that was built like the one it was saved from, on the same pre-trained weights; a readout that
            chooses its layers takes those of the file, and one with a head that was solved after its fit the one that
            the file is of. ``None`` builds it as the file says.
        trust: Let the file name other classes than parts of models; importing them runs their code.

    Returns:
        The model.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or no delta, or belongs to another model, other pre-trained weights (the message
            gives both hashes), or does not say how the model is built; or there is nothing of that id on the hub.
        UnavailableError: If the hub cannot be reached.

    Example:
        >>> import tempfile
        >>> model = ImageClassifier("test_resnet", 3, weights=None)
        >>> path = Path(tempfile.mkdtemp()) / "delta.safetensors"
        >>> save_delta(model, path, class_names=["cat", "dog", "owl"])
        >>> loaded = load_delta(path, model)
    """
    delta = read_delta(_model_file(path))
    loaded = build_model(delta.config, str(path), trust=trust) if model is None else model
    described = {CHECKPOINT_KEY: delta.config.to_json(), "state_dict": delta.tensors}
    loaded.taken_head.follow(described)
    take_layers(loaded, described)
    apply_delta(delta, loaded)
    return loaded


def load_model(path: str | os.PathLike[str], *, trust: bool = False) -> tuple[ImageClassifier, ModelConfig]:
    """Load a delta, or a checkpoint of Lightning, and build the model that it belongs to; in eval mode.

    A checkpoint holds all weights; those that the backbone was pre-trained with need not be there.

    Args:
        path: A ``.safetensors`` or a ``.ckpt`` file, a folder of :func:`~nc_finetune.tune`, or ``"hub:user/name"``.
        trust: As for :func:`load_delta`.

    Returns:
        The model, and what the file says of it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or of another kind; for a delta as :func:`load_delta`.
    """
    path = _model_file(path)
    if path.suffix not in (DELTA_SUFFIX, CHECKPOINT_SUFFIX):
        raise ValueError(
            f"{path} is no model: a model is a .safetensors, a .ckpt, a folder of nc-finetune tune, or hub:user/name"
        )
    if path.suffix == DELTA_SUFFIX:
        model, config = load_delta(path, trust=trust), read_delta(path).config
    else:
        model, config = _load_checkpoint(path, trust)
    model.eval()
    return model, config


def _model_file(path: str | os.PathLike[str]) -> Path:
    found = local_model(path)
    return found / MODEL_FILE if found.is_dir() else found


def build_model(config: ModelConfig, where: str, *, trust: bool = False, with_weights: bool = True) -> ImageClassifier:
    """Build a model as its description says.

    Args:
        config: The description.
        where: What it was read from, for the message.
        trust: As for :func:`load_delta`.
        with_weights: Load the weights that the backbone was pre-trained with.

    Returns:
        The model.

    Raises:
        ValueError: If the description has gaps, or names what is not trusted, unknown or of the wrong kind.
    """
    return ImageClassifier(**model_arguments(config, where, trust=trust, with_weights=with_weights))


def _load_checkpoint(path: Path, trust: bool) -> tuple[ImageClassifier, ModelConfig]:
    content = read_checkpoint(path)
    config = ModelConfig.from_json(content[CHECKPOINT_KEY], str(path))
    model = build_model(config, str(path), trust=trust, with_weights=False)
    load_state(model, content, str(path))
    return model, config
