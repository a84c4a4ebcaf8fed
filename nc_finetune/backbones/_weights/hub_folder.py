"""Local weights: a file, or a copy of a model's folder on the hub with a configuration beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")
LOCAL_FOLDER = "local-dir:"


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


@dataclass(frozen=True)
class LocalWeights:
    """A file of weights on the disk, with what the folder around it says of them.

    Attributes:
        file: The file of weights.
        config: Content of the configuration; ``None`` for a file that has none.
        config_path: Where the configuration was read.
    """

    file: Path
    config: Mapping[str, Any] | None = None
    config_path: Path | None = None


def find_local_weights(path: Path, config_name: str, usual_names: tuple[str, ...]) -> LocalWeights:
    """Find the weights in a hub folder, or beside the configuration of one.

    A file belongs to the configuration beside it if it has one of the usual names; another file stands for itself.

    Args:
        path: A folder with a configuration and weights, or a file of weights.
        config_name: Name of the configuration, e.g. ``"config.json"``.
        usual_names: Names of the weights that hub folders have, the first one preferred.

    Returns:
        The file and its configuration.

    Raises:
        FileNotFoundError: If the folder, its configuration or its weights are not there.
        ValueError: If the configuration is no JSON object, or several files could be meant.
    """
    if path.name.endswith(WEIGHT_FILES) and not path.is_dir():
        beside = path.with_name(config_name)
        if path.name not in usual_names or not beside.is_file():
            return LocalWeights(path)
        return LocalWeights(path, _read_config(beside), beside)
    if not path.is_dir():
        raise FileNotFoundError(f"no folder of weights at {path}")
    config_path = path / config_name
    if not config_path.is_file():
        raise FileNotFoundError(f"{path} has no {config_name}; pass the file of weights itself")
    return LocalWeights(_find_file(path, usual_names), _read_config(config_path), config_path)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(config).__name__}")
    return config


def _find_file(folder: Path, usual_names: tuple[str, ...]) -> Path:
    usual = [folder / name for name in usual_names if (folder / name).is_file()]
    files = usual[:1] or sorted(file for file in folder.iterdir() if file.suffix in WEIGHT_FILES)
    if not files:
        raise FileNotFoundError(f"{folder} has no weights ({', '.join(WEIGHT_FILES)})")
    if len(files) > 1:
        raise ValueError(
            f"{folder} has several files of weights ({', '.join(f.name for f in files)}); pass one of them"
        )
    return files[0]
