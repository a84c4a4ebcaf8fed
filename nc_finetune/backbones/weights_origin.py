"""Where pre-trained weights are public, and under which licence."""

from __future__ import annotations

from typing import NamedTuple

from nc_finetune.backbones._weights.hub_folder import local_path

_OPEN_CLIP = "open_clip:"


class WeightsOrigin(NamedTuple):
    """What is known of public weights.

    Attributes:
        hub_id: Their repository on the Hugging Face hub; ``None`` where that is not known.
        licence: As the library says, by its short name on the hub; ``None`` where it does not.
    """

    hub_id: str | None = None
    licence: str | None = None


def weights_origin(name: str, weights: str | None) -> WeightsOrigin | None:
    """Say where weights are public, without asking anybody.

    Args:
        name: Of the backbone, as of :func:`~nc_finetune.create_backbone`.
        weights: As a backbone takes them.

    Returns:
        What is known; ``None`` for random weights and for files, which nobody else has.

    Example:
        >>> weights_origin("vit_small_patch14_dinov2", "lvd142m")
        WeightsOrigin(hub_id='timm/vit_small_patch14_dinov2.lvd142m', licence='apache-2.0')
        >>> weights_origin("resnet50", "mine.pth") is None
        True
    """
    if weights is None or local_path(weights) is not None:
        return None
    if weights == "package":
        return WeightsOrigin()
    return _of_open_clip(name, weights) if name.startswith(_OPEN_CLIP) else _of_timm(name, weights)


def _of_timm(name: str, weights: str) -> WeightsOrigin:
    import timm

    found = timm.get_pretrained_cfg(name if weights == "default" else f"{name.partition('.')[0]}.{weights}")
    return WeightsOrigin() if found is None else WeightsOrigin(found.hf_hub_id, found.license)


def _of_open_clip(name: str, weights: str) -> WeightsOrigin:
    import open_clip

    found = open_clip.get_pretrained_cfg(name.removeprefix(_OPEN_CLIP), weights).get("hf_hub", "")
    owner, _, rest = found.partition("/")
    return WeightsOrigin(f"{owner}/{rest.partition('/')[0]}" if rest else None)
