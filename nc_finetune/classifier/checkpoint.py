"""What a checkpoint says of its model, and the arguments that build the model again."""

from __future__ import annotations

import inspect
import pickle
import warnings
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from nc_finetune._common.lightning_internals import is_attached
from nc_finetune.backbones import Backbone, Preprocessing
from nc_finetune.doubt import DoubtState
from nc_finetune.doubt.state import PREFIX
from nc_finetune.errors import unsafe_content
from nc_finetune.files.class_config import build, describe, describe_if_possible
from nc_finetune.files.delta_io import CHECKPOINT_KEY
from nc_finetune.files.model_config import ModelConfig, describe_model, described_key_layer
from nc_finetune.heads import set_width_
from nc_finetune.losses import PickAllLabelsLoss
from nc_finetune.methods import AUTO, FinetuningMethod, LayerReadout, named_blocks

# Where a checkpoint says how its model is trained: the arguments that a delta need not know.
TRAINING_KEY = "nc_finetune_training"
_DESCRIBED_APART = ("self", "backbone", "num_classes", "weights", "method", "head")


def describe_training(model: Any) -> dict[str, Any]:
    """Write down the arguments of a model that do not change its logits: loss, optimizer, rates and the like.

    Args:
        model: An :class:`~nc_finetune.ImageClassifier`, or of a class of one's own that keeps its arguments.

    Returns:
        What JSON can hold: ``arguments`` by name, the names that are ``left_out`` since there is no description, and
        the hash of the backbone before it was tuned.
    """
    arguments, left_out = {}, []
    for name in (name for name in _argument_names(type(model)) if hasattr(model, name)):
        try:
            arguments[name] = describe(getattr(model, name))
        except TypeError:
            left_out.append(name)
    weights = model.backbone.weights
    return {
        "arguments": arguments,
        "left_out": left_out,
        "base_sha256": model.backbone.base_hash,
        "weights": weights if isinstance(weights, str) else None,
    }


def hyperparameters(model: Any) -> dict[str, bool | int | float | str | None]:
    """Return what loggers show of a model, flat: names of its parts, options of the method, and the rates.

    Args:
        model: An :class:`~nc_finetune.ImageClassifier`.

    Returns:
        Plain values by name; rates are those that hold where none was given.
    """
    method, backbone = model.method, model.backbone
    main = method.default_learning_rate or model.head_learning_rate
    return {
        "backbone": backbone.name,
        "weights": None if backbone.weights is None else str(backbone.weights),
        "num_classes": model.num_classes,
        "method": method.name,
        **_flatten("method", (describe_if_possible(method) or {}).get("init_args", {})),
        "head": type(model.head).__name__,
        "loss": type(model.loss).__name__,
        "optimizer": _name(model.optimizer),
        "learning_rate": main if model.learning_rate is None else model.learning_rate,
        "head_learning_rate": model.head_learning_rate,
        "rest_learning_rate": (
            method.rest_learning_rate if model.rest_learning_rate is None else model.rest_learning_rate
        ),
        **_flatten("backbone", {"options": getattr(backbone, "model_options", None) or {}}),
    }


def read_checkpoint(path: Any, map_location: Any = "cpu", weights_only: bool = True) -> dict[str, Any]:
    """Read a checkpoint of an :class:`~nc_finetune.ImageClassifier`; nothing of it is run.

    Args:
        path: The file, or an open one.
        map_location: Where tensors go, as for ``torch.load``.
        weights_only: As for ``torch.load``; ``False`` runs what a file says, and is for files of one's own.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, of another kind, or holds more than tensors and plain values.
    """
    if isinstance(path, (str, Path)) and not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        content = torch.load(path, map_location=map_location, weights_only=weights_only)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = unsafe_content(error)
        raise ValueError(f"{path} is damaged, or holds more than tensors and plain values: {reason}") from error
    if not isinstance(content, dict) or CHECKPOINT_KEY not in content or "state_dict" not in content:
        raise ValueError(f"{path} is no checkpoint of an ImageClassifier")
    return content


def model_arguments(
    config: ModelConfig,
    where: str,
    *,
    trust: bool = False,
    with_weights: bool = True,
    given: Collection[str] = (),
) -> dict[str, Any]:
    """Build the parts of a model as its description says.

    Args:
        config: The description.
        where: What it was read from, for the message.
        trust: As for :func:`~nc_finetune.load_delta`.
        with_weights: Load the weights that the backbone was pre-trained with.
        given: Names of the arguments that are there already, and need no description.

    Returns:
        Arguments of :class:`~nc_finetune.ImageClassifier`.

    Raises:
        ValueError: If the description has gaps, or names what is not trusted, unknown or of the wrong kind.
    """
    described = {"backbone": config.backbone, "method": config.method, "head": config.head}
    wanted = {name: part for name, part in described.items() if name not in given}
    if gaps := [name for name, part in wanted.items() if part is None]:
        raise ValueError(f"{where} does not say how its {gaps[0]} is built; pass the model to load_delta")
    if not with_weights and (part := wanted.get("backbone")) is not None:
        wanted["backbone"] = {**part, "init_args": {**part["init_args"], "weights": None}}
    parts = {name: build(part, trust) for name, part in wanted.items()}
    for name, kind in (("backbone", Backbone), ("method", FinetuningMethod)):
        if name in parts and not isinstance(parts[name], kind):
            raise ValueError(f"{where} names a {type(parts[name]).__name__} where a {kind.__name__} belongs")
    if not with_weights and "backbone" in parts:
        fields: dict[str, Any] = build(config.preprocessing)
        parts["backbone"].set_preprocessing(Preprocessing(**fields))
    if "method" in parts and parts["method"].own_head is not None:
        parts.pop("head", None)
    if config.multi_label:
        parts["loss"] = nn.BCEWithLogitsLoss() if config.independent_classes else PickAllLabelsLoss()
    return {"num_classes": config.num_classes, **parts}


def checkpoint_arguments(
    content: Mapping[str, Any], cls: type[Any], where: str, *, trust: bool, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments with which the model of a checkpoint is built; its weights come from the checkpoint.

    Args:
        content: Of the checkpoint.
        cls: The class of the model; one of somebody's own may take other arguments, those of its hyperparameters too.
        where: What it was read from, for messages.
        trust: As for :func:`~nc_finetune.load_delta`.
        given: Arguments that win over those of the checkpoint.

    Returns:
        Those that the class takes.

    Raises:
        ValueError: As :func:`model_arguments`.

    Warns:
        UserWarning: If there is no description of the loss or the optimizer.
    """
    config = ModelConfig.from_json(content[CHECKPOINT_KEY], where)
    training = content.get(TRAINING_KEY, {})
    signature = inspect.signature(cls.__init__).parameters
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.values())
    takes = set(signature) | (set(_DESCRIBED_APART) | set(training.get("arguments", {})) if passes_on else set())
    own = {name: value for name, value in content.get("hyper_parameters", {}).items() if name in signature}
    skipped = {name for name in ("backbone", "method", "head") if name not in takes}
    found = model_arguments(config, where, trust=trust, with_weights=False, given={*given, *skipped})
    described = {
        name: _build_argument(name, part, trust)
        for name, part in training.get("arguments", {}).items()
        if name in takes and name not in given
    }
    arguments = {name: value for name, value in {**found, **described}.items() if name in takes}
    extra = {name: value for name, value in own.items() if name not in arguments and name not in _NAMED_ALIKE}
    if unknown := [name for name in training.get("left_out", ()) if name in takes and name not in given]:
        warnings.warn(
            f"{where} does not say how its {' and '.join(unknown)} is built, and the default stands in its place; pass"
            f" {unknown[0]}= to go on training",
            stacklevel=3,
        )
    return {**extra, **arguments, **{name: value for name, value in given.items() if name != "weights"}}


# Hyperparameters for loggers that are names where the argument is an object.
_NAMED_ALIKE = ("backbone", "weights", "num_classes", "method", "head", "loss", "optimizer")


def load_state(model: Any, content: Mapping[str, Any], where: str, strict: bool = True) -> None:
    """Load the weights of a checkpoint onto the model that it describes, in the precision that it was trained in.

    Weights of a loss that the model does not have are left out: nobody needs them to predict.

    Args:
        model: The model.
        content: Of the checkpoint.
        where: What it was read from, for the message.
        strict: As for ``load_state_dict``.

    Raises:
        ValueError: If they are not of this model.
    """
    take_doubt(model, content)
    known, state = model.state_dict(), content["state_dict"]
    state = {name: value for name, value in state.items() if not name.startswith("loss.") or name in known}
    own = (value for name, value in state.items() if not name.startswith(PREFIX))
    dtypes = {value.dtype for value in own if value.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())
    try:
        model.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        raise ValueError(f"the weights in {where} are not of the model that it describes: {error}") from error
    training = content.get(TRAINING_KEY, {})
    # What it was tuned from, for the deltas that come: its network was built without weights.
    model.backbone.base_hash = training.get("base_sha256", model.backbone.base_hash)
    model.backbone.weights = training.get("weights", model.backbone.weights)


def describe_into(checkpoint: dict[str, Any], model: Any) -> None:
    """Say in a checkpoint how its model is built and trained.

    What loggers are told is taken out: Lightning's command line would take names of parts for arguments.
    """
    checkpoint[CHECKPOINT_KEY] = describe_model(model).to_json()
    checkpoint[TRAINING_KEY] = describe_training(model)
    told, saved = hyperparameters(model), checkpoint.pop(model.CHECKPOINT_HYPER_PARAMS_KEY, {})
    # What has a slash in its name is nobody's argument; of a part it may have been chosen since.
    if own := {name: value for name, value in saved.items() if "/" not in name and told.get(name, saved) != value}:
        checkpoint[model.CHECKPOINT_HYPER_PARAMS_KEY] = own


def take_key_layer(method: FinetuningMethod, backbone: Backbone, checkpoint: Mapping[str, Any]) -> bool:
    """Let a method tune the block that a checkpoint names, where trials choose it; tell whether it does.

    Raises:
        ValueError: If the method names another one itself.
    """
    found = described_key_layer(checkpoint.get(CHECKPOINT_KEY))
    if found in (None, AUTO):
        return False
    if method.key_layer != AUTO and not method.key_layer_chosen:
        own = method.key_layers(backbone)
        if named_blocks(backbone, found) != own:
            raise ValueError(f"the checkpoint tunes key_layer={found!r}, the model {', '.join(own)}; name the same")
        return False
    method.set_key_layer(found)
    return True


def take_doubt(model: Any, checkpoint: Mapping[str, Any]) -> None:
    """Keep the statistics of training images that a checkpoint holds; a fit that goes on from it makes them old.

    Args:
        model: An :class:`~nc_finetune.ImageClassifier`.
        checkpoint: With a ``state_dict``, out of which they are taken where a fit goes on.

    Raises:
        ValueError: If they are damaged, or of other classes.
    """
    state = checkpoint.get("state_dict", {})
    if is_attached(model) and model.trainer.state.fn == "fit":
        for name in [name for name in state if name.startswith(PREFIX)]:
            del state[name]
    found = DoubtState.of_state(state, model.num_classes)
    model.doubt = None if found is None else found.to(model.device)


def take_layers(model: Any, checkpoint: Mapping[str, Any]) -> None:
    """Let a readout that chooses its layers look at those of a checkpoint, under a head that fits."""
    method, described = model.method, checkpoint.get(CHECKPOINT_KEY) or {}
    found = ((described.get("method") or {}).get("init_args") or {}).get("layers", AUTO)
    if isinstance(method, LayerReadout) and found != AUTO and (method.layers == AUTO or method.layers_chosen):
        method.choose(found)
        set_width_(model.head, method.num_features(model.backbone))


def _argument_names(cls: type[Any]) -> list[str]:
    """Return the arguments of a class, and of those of its bases that are models, too: it may pass arguments on."""
    kinds = [kind for kind in cls.__mro__ if issubclass(kind, L.LightningModule) and "__init__" in vars(kind)]
    names = dict.fromkeys(name for kind in kinds for name in inspect.signature(kind.__init__).parameters)
    return [name for name in names if name not in _DESCRIBED_APART]


def _build_argument(name: str, part: Any, trust: bool) -> Any:
    if name != "optimizer" or not isinstance(part, Mapping):
        return build(part, trust)
    kind = getattr(torch.optim, str(part.get("class_path")).rpartition(".")[2], None)
    if inspect.isclass(kind) and f"{kind.__module__}.{kind.__qualname__}" == part["class_path"]:
        return partial(kind, **build(part.get("init_args", {}), trust))
    return build(part, trust)


def _name(factory: Any) -> str:
    found = factory.func if isinstance(factory, partial) else factory
    return getattr(found, "__name__", type(found).__name__)


def _flatten(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(f"{prefix}/{name}", value)
        else:
            flat[f"{prefix}/{name}"] = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    return flat
