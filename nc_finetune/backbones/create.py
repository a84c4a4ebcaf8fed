"""One name for a backbone of any library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nc_finetune.backbones.base import Backbone
from nc_finetune.backbones.open_clip_backbone import OpenClipBackbone
from nc_finetune.backbones.timm_backbone import TimmBackbone
from nc_finetune.errors import unknown_name

LIBRARIES: dict[str, Callable[..., Backbone]] = {"timm": TimmBackbone, "open_clip": OpenClipBackbone}


def create_backbone(name: str, weights: str | None = "default", **options: Any) -> Backbone:
    """Build a backbone from its name.

    Args:
        name: ``"<library>:<model>"`` with ``timm`` or ``open_clip``, e.g. ``"open_clip:ViT-B-32-quickgelu"``; without
            a library it is a model of timm.
        weights: As for :class:`~nc_finetune.backbones.TimmBackbone` and
            :class:`~nc_finetune.backbones.OpenClipBackbone`; open_clip has no default tag.
        options: Further arguments of that class.

    Returns:
        The backbone.

    Raises:
        ValueError: If the library, the model or its weights are unknown.

    Example:
        >>> create_backbone("test_resnet", weights=None).num_features
        96
    """
    library, colon, model = name.rpartition(":")
    if colon and library not in LIBRARIES:
        raise unknown_name("library of backbones", library, LIBRARIES)
    _check_library(library, model)
    return LIBRARIES[library or "timm"](model, weights, **options)


def _check_library(library: str, model: str) -> None:
    """Say so if a name without a library is one of open_clip's."""
    if library:
        return
    import timm

    if timm.is_model(model.partition(".")[0]):
        return
    import open_clip

    if model in open_clip.list_models():
        raise ValueError(f"{model!r} is a model of open_clip; its name here is 'open_clip:{model}'")
