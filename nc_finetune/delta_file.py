"""Delta files: what fine-tuning changed of a model, in one ``.safetensors`` file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nc_finetune.backbones import state_hash, weights_hash
from nc_finetune.files import write_atomically
from nc_finetune.model_config import ModelConfig, describe_model

METADATA_KEY = "nc_finetune"


@dataclass(frozen=True)
class Delta:
    """The content of a delta file.

    Attributes:
        config: How the model is built.
        tensors: What was tuned, by the names that the model gives it.
        frozen_sha256: Hash of the part of the backbone that is not in the file.
        base_sha256: Hash of the whole backbone before it was tuned; ``None`` if nobody recorded it.
    """

    config: ModelConfig
    tensors: dict[str, Tensor]
    frozen_sha256: str
    base_sha256: str | None


def record_base(model: Any) -> None:
    """Hash the weights of the backbone before they are tuned, and keep the hash as ``model.backbone.base_hash``.

    Once there it stays, so that a second fit does not replace it. It takes about 1 ms a megabyte.
    :class:`~nc_finetune.ImageClassifier` does so before a fit.

    Args:
        model: Anything with a ``backbone``.
    """
    if model.backbone.base_hash is None:
        model.backbone.base_hash = weights_hash(model.backbone.model)


def tuned_state(model: Any) -> dict[str, Tensor]:
    """Return what makes a model differ from its base.

    That is every parameter of the backbone that requires a gradient, the buffers of the modules that the method tunes
    as a whole (statistics of BatchNorm; what tunes single parameters leaves them alone), and the whole head.

    Args:
        model: Anything with ``backbone``, ``head`` and ``method``.

    Returns:
        Tensors by name (``backbone.…``, ``head.…``, ``method.…``), not copied.
    """
    state = _backbone_state(model)
    tuned = _tuned_names(model)
    parts: dict[str, Any] = {"head": model.head, "method": model.method}
    beside = {
        f"{part}.{name}": value
        for part, module in parts.items()
        if isinstance(module, nn.Module)
        for name, value in module.state_dict().items()
    }
    return {name: value for name, value in state.items() if name in tuned} | beside


def frozen_hash(model: Any) -> str:
    """Hash the part of the backbone that is not tuned, and hence is the same before and after the fit.

    Args:
        model: Anything with ``backbone`` and ``method``.

    Returns:
        SHA-256 in hexadecimal.
    """
    tuned = _tuned_names(model)
    return state_hash({name: value for name, value in _backbone_state(model).items() if name not in tuned})


def save_delta(model: Any, path: str | os.PathLike[str], class_names: Sequence[str] | None = None) -> None:
    """Save what fine-tuning changed: the tuned part of the backbone, its buffers and the head.

    The file is a ``.safetensors`` whose metadata say how the model is built, what its classes are called, how its
    images are prepared, and the hashes of the weights that it builds on. It is there whole or not at all.

    Args:
        model: An :class:`~nc_finetune.ImageClassifier`, or anything else with ``backbone``, ``head``, ``method`` and
            ``num_classes``.
        path: Where to, ending in ``.safetensors``.
        class_names: K names; ``None`` takes those of the datamodule that the model was trained with.

    Raises:
        ValueError: If the path ends otherwise or the number of names is not K.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a delta is a .safetensors file, got {path.name!r}")
    tensors, tied = _without_copies(tuned_state(model))
    frozen = frozen_hash(model)
    untouched = not any(name.startswith("backbone.") for name in tensors)
    base = weights_hash(model.backbone.model) if untouched else model.backbone.base_hash
    content = {
        "config": describe_model(model, class_names).to_json(),
        "tied": tied,
        "frozen_sha256": frozen,
        "base_sha256": base,
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
        return Delta(config, tensors, content["frozen_sha256"], content["base_sha256"])
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no delta of nc-finetune: it lacks a description ({error!r})") from error


@torch.no_grad()
def apply_delta(delta: Delta, model: Any) -> None:
    """Load a delta onto a model that was built like the one it was saved from.

    Everything is checked before anything is changed. What was tuned before is replaced, so that several deltas can
    take turns on one backbone.

    Args:
        delta: What :func:`read_delta` returned.
        model: Anything with ``backbone``, ``head``, ``method`` and ``num_classes``.

    Raises:
        ValueError: If architecture, method, head, number of classes, preprocessing, a shape or the frozen weights are
            others than those of the delta.
    """
    _check_config(delta.config, describe_model(model))
    state = tuned_state(model)
    _check_tensors(delta.tensors, state)
    found = frozen_hash(model)
    if found != delta.frozen_sha256:
        base = f" (the base as a whole: {delta.base_sha256})" if delta.base_sha256 else ""
        raise ValueError(
            f"the delta belongs to another base: it builds on frozen weights with SHA-256 {delta.frozen_sha256}{base},"
            f" those of this {model.backbone.name} have {found}; load the weights that it was trained from"
        )
    _check_whole_base(delta, model)
    for name, value in delta.tensors.items():
        state[name].copy_(value)
    model.backbone.base_hash = delta.base_sha256


def _check_whole_base(delta: Delta, model: Any) -> None:
    """Compare what the delta was trained from where none of it is left frozen to tell: after full fine-tuning."""
    network = model.backbone.model
    if delta.base_sha256 is None or not all(parameter.requires_grad for parameter in network.parameters()):
        return
    found = model.backbone.base_hash or weights_hash(network)
    if found != delta.base_sha256:
        raise ValueError(
            f"the delta belongs to another base: it was trained from weights with SHA-256 {delta.base_sha256}, those of"
            f" this {model.backbone.name} have {found}; load the weights that it was trained from"
        )


def _backbone_state(model: Any) -> dict[str, Tensor]:
    return {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}


def _tuned_names(model: Any) -> set[str]:
    backbone = model.backbone
    tuned = {
        f"backbone.{name}"
        for name, parameter in backbone.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }
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
