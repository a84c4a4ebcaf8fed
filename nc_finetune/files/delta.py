"""Delta files: what fine-tuning changed of a model, in one ``.safetensors`` file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nc_finetune._common.atomic_files import write_atomically
from nc_finetune.backbones import state_hash, weights_hash
from nc_finetune.doubt import DoubtState
from nc_finetune.doubt.state import PREFIX
from nc_finetune.files.model_config import ModelConfig, describe_model

METADATA_KEY = "nc_finetune"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Delta:
    """The content of a delta file.

    Attributes:
        config: How the model is built.
        tensors: What was tuned, by the names that the model gives it.
        frozen_sha256: Hash of the part of the backbone that is not in the file.
        base_sha256: Hash of the whole backbone before it was tuned; ``None`` if nobody recorded it.
        dtype: Of all numbers of the model, such as ``torch.bfloat16`` after ``precision="bf16-true"``, to which the
            base was cast as well; ``None`` if they differ, or nobody recorded it.
    """

    config: ModelConfig
    tensors: dict[str, Tensor]
    frozen_sha256: str
    base_sha256: str | None
    dtype: torch.dtype | None = None


def record_base(model: Any) -> None:
    """Hash the weights of the backbone before they are tuned, and keep the hash as ``model.backbone.base_hash``.

    Once there it stays, so that a second fit does not replace it. It takes about 1 ms a megabyte.
    :class:`~nc_finetune.ImageClassifier` does so before a fit.

    Args:
        model: Anything with a ``backbone``.
    """
    if model.backbone.base_hash is None:
        model.backbone.base_hash = weights_hash(model.backbone.model)


def tuned_state(model: Any, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return what makes a model differ from its base.

    That is every parameter of the backbone that the method tunes, the buffers of the modules that it tunes as a whole
    (statistics of BatchNorm; what tunes single parameters leaves them alone), and the whole head; beside them the
    statistics that are kept of the training images.

    Args:
        model: Anything with ``backbone``, ``head`` and ``method``.
        state: A state dict of the model, such as one of averaged weights; ``None`` is its own.

    Returns:
        Tensors by name (``backbone.…``, ``head.…``, ``method.…``, ``doubt.…``), not copied.
    """
    own = _own_tuned_state(model)
    if state is None:
        return own
    return {name: value if name.startswith(PREFIX) else state[name] for name, value in own.items()}


def _own_tuned_state(model: Any) -> dict[str, Tensor]:
    state = _backbone_state(model)
    tuned = _tuned_names(model)
    parts: dict[str, Any] = {"head": model.head, "method": model.method, "doubt": getattr(model, "doubt", None)}
    beside = {
        f"{part}.{name}": value
        for part, module in parts.items()
        if isinstance(module, nn.Module)
        for name, value in module.state_dict().items()
    }
    return {name: value for name, value in state.items() if name in tuned} | beside


def frozen_hash(model: Any, dtype: torch.dtype | None = None) -> str:
    """Hash the part of the backbone that is not tuned, and hence is the same before and after the fit.

    Args:
        model: Anything with ``backbone`` and ``method``.
        dtype: To which numbers are cast before; ``None`` leaves them.

    Returns:
        SHA-256 in hexadecimal.
    """
    tuned = _tuned_names(model)
    return state_hash(
        {name: _cast(value, dtype) for name, value in _backbone_state(model).items() if name not in tuned}
    )


def number_type(model: Any) -> torch.dtype | None:
    """Return the type of all floating-point numbers of a model; ``None`` if they differ.

    Args:
        model: Anything with ``backbone``, ``head`` and ``method``.
    """
    parts = (part for part in (model.backbone, model.head, model.method) if isinstance(part, nn.Module))
    found = {value.dtype for part in parts for value in part.state_dict().values() if value.is_floating_point()}
    return found.pop() if len(found) == 1 else None


def save_delta(
    model: Any,
    path: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    *,
    state: Mapping[str, Tensor] | None = None,
    data: Any = None,
) -> None:
    """Save what fine-tuning changed: the tuned part of the backbone, its buffers and the head.

    The file is a ``.safetensors`` whose metadata say how the model is built, what its classes are called, how its
    images are prepared, and the hashes of the weights that it builds on. It is there whole or not at all.

    Args:
        model: An :class:`~nc_finetune.ImageClassifier`, or anything else with ``backbone``, ``head``, ``method`` and
            ``num_classes``.
        path: Where to, ending in ``.safetensors``.
        class_names: K names; ``None`` takes those of the datamodule that the model was trained with.
        state: Where the tuned tensors come from, such as averaged weights; ``None`` is the model itself.
        data: The datamodule that the model was trained with, which knows the size of its images; ``None`` is that of
            the trainer that it is attached to.

    Raises:
        ValueError: If the path ends otherwise or the number of names is not K.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a delta is a .safetensors file, got {path.name!r}")
    tensors, tied = _without_copies(tuned_state(model, state))
    dtype = number_type(model)
    base = model.backbone.base_hash
    untouched = not any(name.startswith("backbone.") for name in tensors)
    if untouched and (base is None or dtype == torch.float32):  # not cast since it was recorded
        base = weights_hash(model.backbone.model)
    content = {
        "config": describe_model(model, class_names, data).to_json(),
        "tied": tied,
        "frozen_sha256": frozen_hash(model),
        "base_sha256": base,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
    }
    write_atomically(path, save(tensors, {"format": "pt", METADATA_KEY: json.dumps(content)}))


def read_delta(path: str | os.PathLike[str]) -> Delta:
    """Read a delta file; nothing of it is run.

    Args:
        path: What :func:`save_delta` wrote.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or no delta.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no delta at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no .safetensors file: {error}") from error
    try:
        content = json.loads(metadata[METADATA_KEY])
        tensors |= {name: tensors[twin] for name, twin in content["tied"].items()}
        config = ModelConfig.from_json(content["config"], str(path))
        dtype = _read_dtype(content.get("dtype"))
        return Delta(config, tensors, content["frozen_sha256"], content["base_sha256"], dtype)
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no delta of nc-finetune: it lacks a description ({error!r})") from error


@torch.no_grad()
def apply_delta(delta: Delta, model: Any) -> None:
    """Load a delta onto a model that was built like the one it was saved from.

    Everything is checked before anything is changed. What was tuned before is replaced, so that several deltas can
    take turns on one backbone. A model in another precision is cast to that of the delta, as it was for its fit.

    Args:
        delta: What :func:`read_delta` returned.
        model: Anything with ``backbone``, ``head``, ``method`` and ``num_classes``.

    Raises:
        ValueError: If architecture, method, head, number of classes, preprocessing, a shape or the frozen weights are
            others than those of the delta, or statistics of its training images are damaged or of other classes.
    """
    _check_config(delta.config, describe_model(model))
    cast = delta.dtype if number_type(model) is not None else None
    doubt = DoubtState.of_state(delta.tensors, model.num_classes)
    tensors = _weights(delta.tensors)
    if (make_room := getattr(model.head, "make_room_", None)) is not None:  # it holds images, as many as there were
        make_room(tensors, "head.")
    _check_tensors(tensors, {name: _cast(value, cast) for name, value in _weights(tuned_state(model)).items()})
    found = frozen_hash(model, cast)
    if found != delta.frozen_sha256:
        base = f" (the base as a whole: {delta.base_sha256})" if delta.base_sha256 else ""
        raise ValueError(
            f"the delta belongs to another base: it builds on frozen weights with SHA-256 {delta.frozen_sha256}{base},"
            f" those of this {model.backbone.name} have {found}; {_right_base(delta)}"
        )
    _check_whole_base(delta, model)
    if cast is not None and cast != number_type(model):
        for part in (model.backbone, model.head, model.method):
            part.to(cast)
    state = tuned_state(model)
    for name, value in tensors.items():
        state[name].copy_(value)
    model.backbone.base_hash = delta.base_sha256
    if hasattr(model, "doubt"):
        model.doubt = None if doubt is None else doubt.to(next(model.backbone.parameters()).device)


def _weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all but the statistics of the training images, which a model may have or not."""
    return {name: value for name, value in tensors.items() if not name.startswith(PREFIX)}


def _check_whole_base(delta: Delta, model: Any) -> None:
    """Compare what the delta was trained from where none of it is left frozen to tell: after full fine-tuning."""
    network = model.backbone.model
    tuned = {id(parameter) for parameter in model.method.tuned_parameters(model.backbone)}
    if delta.base_sha256 is None or not tuned >= {id(parameter) for parameter in network.parameters()}:
        return
    found = model.backbone.base_hash or weights_hash(network)
    cast = state_hash({name: _cast(value, delta.dtype) for name, value in network.state_dict().items()})
    if delta.base_sha256 not in (found, cast):  # the latter where the network was built in that precision
        raise ValueError(
            f"the delta belongs to another base: it was trained from weights with SHA-256 {delta.base_sha256}, those of"
            f" this {model.backbone.name} have {found}; {_right_base(delta)}"
        )


def _right_base(delta: Delta) -> str:
    """Say what to do where the weights are others."""
    described = delta.config.backbone
    if described is not None and described["init_args"].get("weights") is None:
        return (
            "it names none, as of random ones, so that nothing can load them again: give the model that it was trained"
            " on, load_delta(path, model)"
        )
    return "load the weights that it was trained from"


def _cast(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value


def _read_dtype(name: Any) -> torch.dtype | None:
    known = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES}
    if name is not None and name not in known:
        raise TypeError(f"numbers are of {', '.join(known)}, got {name!r}")
    return None if name is None else known[name]


def _backbone_state(model: Any) -> dict[str, Tensor]:
    return {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}


def _tuned_names(model: Any) -> set[str]:
    backbone = model.backbone
    # Not by requires_grad: another model on the same backbone may have changed that.
    chosen = {id(parameter) for parameter in model.method.tuned_parameters(backbone)}
    named = backbone.named_parameters(remove_duplicate=False)
    tuned = {f"backbone.{name}" for name, parameter in named if id(parameter) in chosen}
    modules = {part for module in model.method.tuned_modules(backbone) for part in module.modules()}
    for name, part in backbone.named_modules(remove_duplicate=False):
        if part in modules:
            tuned |= {f"backbone.{name}.{buffer}" for buffer, _ in part.named_buffers(recurse=False)}
    return tuned


def _without_copies(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Lay tensors out as the file wants them; of those that are one and the same, keep the first."""
    first: dict[Any, str] = {}
    tied = {}
    for name, value in state.items():
        twin = first.setdefault((value.data_ptr(), value.shape, value.stride(), value.dtype, value.device), name)
        if twin != name and value.numel():
            tied[name] = twin
    # Cloned: tensors may share parts of a storage.
    kept = {name: value for name, value in state.items() if name not in tied}
    laid_out = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in kept.items()}
    return laid_out, tied


def _check_config(wanted: ModelConfig, found: ModelConfig) -> None:
    """Compare what decides about the logits; where the weights came from does not, their hash does."""
    pairs = {
        "backbone": (wanted.backbone_name, found.backbone_name),
        "number of classes": (wanted.num_classes, found.num_classes),
        "method": (wanted.method, found.method),
        "head": (wanted.head, found.head),
        "backbone's options": (_options(wanted), _options(found)),
        "preprocessing": (wanted.preprocessing, found.preprocessing),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs and None not in (ours, theirs):
            raise ValueError(f"the delta was made for another {what}: {ours}, the model has {theirs}; build it alike")


def _options(config: ModelConfig) -> dict[str, Any] | None:
    if config.backbone is None:
        return None
    arguments = config.backbone["init_args"]
    left_out = ("weights", "preprocessing", "channels_last")
    return {"class": config.backbone["class_path"], **{k: v for k, v in arguments.items() if k not in left_out}}


def _check_tensors(tensors: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    if different := sorted(tensors.keys() ^ state.keys()):
        raise ValueError(
            f"the delta and the model do not tune the same: {len(different)} names are in one of them only, e.g."
            f" {different[0]}; build the model with the method and the head of the delta"
        )
    for name, value in tensors.items():
        here = state[name]
        if (value.shape, value.dtype) != (here.shape, here.dtype):
            raise ValueError(
                f"{name} is {tuple(value.shape)} of {value.dtype} in the delta, {tuple(here.shape)} of {here.dtype} in"
                " the model; build it alike, and cast it after loading"
            )
