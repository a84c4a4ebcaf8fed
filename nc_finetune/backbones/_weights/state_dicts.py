"""State dicts from local files, and what to say where one does not fit or cannot be had."""

from __future__ import annotations

import argparse
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nc_finetune.errors import UnavailableError, unsafe_content

# Under which names training scripts keep weights, and what wrappers put before the names of tensors.
_AVERAGED = ("state_dict_ema", "model_ema")
_PLAIN = ("state_dict", "model", "module")
_WRAPPERS = ("module.", "_orig_mod.")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, or from a torch file of tensors and plain values.

    Checkpoints of training scripts are taken, too: weights under ``state_dict``, ``model`` or ``module``, or their
    average under ``state_dict_ema`` or ``model_ema``; prefixes ``module.`` and ``_orig_mod.`` come off.

    Args:
        path: The file.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read as a state dict, or would have to be unpickled unsafely.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments of training scripts
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader has its own kinds
        reason = unsafe_content(error)
        raise ValueError(f"{path} is not a state dict of tensors alone ({reason}); save one as .safetensors") from error
    content = _without_wrapping(content, path)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} must hold a state dict of tensors, got {type(content).__name__}")
    return _without_prefixes(content)


def _without_wrapping(content: Any, path: Path) -> Any:
    """Return the weights in a checkpoint of a training script; averaged ones where it has them, as timm does."""
    if not isinstance(content, Mapping):
        return content
    found = [key for key in (*_AVERAGED, *_PLAIN) if isinstance(content.get(key), Mapping)]
    if not found:
        return content
    if found[0] in _AVERAGED and len(found) > 1:
        warnings.warn(
            f"{path} holds weights and their average; the average, {found[0]!r}, is taken, as timm does", stacklevel=4
        )
    return content[found[0]]


def _without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what DataParallel and torch.compile put before every name."""
    names = list(state)
    while prefix := next((p for p in _WRAPPERS if names and all(name.startswith(p) for name in names)), None):
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, state.values(), strict=True))


def shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shape of each tensor."""
    return {name: value.shape for name, value in state.items()}


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], name: str, path: Path) -> None:
    """Load a state dict that must have every tensor of the module and no other.

    Args:
        module: The network.
        state: Tensors by name.
        name: The network's architecture, for the message.
        path: Where the tensors came from, for the message.

    Raises:
        ValueError: If the names or shapes are those of another architecture.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise other_architecture(name, path, error) from error


def other_architecture(name: str, path: Path, reason: object) -> ValueError:
    """Build the error for a file with weights of another network than the wanted one."""
    short = textwrap.shorten(str(reason), 400)  # torch names every tensor
    return ValueError(f"{path} does not hold weights of {name}: {short}")


def hub_failure(name: str, tag: str, reason: object) -> UnavailableError:
    """Build the error for weights that could not be had from the hub."""
    return UnavailableError(
        f"the pre-trained weights {tag!r} of {name} could not be had from the hub ({reason}); pass a local file or "
        "folder, weights='package' where a package ships them, or weights=None for random initialisation"
    )
