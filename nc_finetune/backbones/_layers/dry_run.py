"""A forward pass of a backbone that needs neither data nor memory, to see what it calls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

if TYPE_CHECKING:
    from nc_finetune.backbones.base import Backbone


def dry_run(
    backbone: Backbone, watch: Callable[[], AbstractContextManager[object]], image_size: int | None = None
) -> Tensor:
    """Run a backbone on two blank images on the meta device, or where its weights are if it does not run there.

    Parameters and buffers are stood in for, and need no gradient; the backbone is left as it was.

    Args:
        backbone: The network.
        watch: Makes the context in which it runs, such as hooks; called anew for a second attempt.
        image_size: Height and width; ``None`` is what the network is bound to, or what its weights were trained on.

    Returns:
        The features, shape ``(2, num_features)``.

    Example:
        >>> from contextlib import nullcontext
        >>> from nc_finetune.backbones import TimmBackbone
        >>> dry_run(TimmBackbone("test_vit", weights=None), nullcontext)
        tensor(..., device='meta', size=(2, 64))
    """
    size = (
        (image_size, image_size)
        if image_size
        else _bound_size(backbone.model) or (backbone.preprocessing.image_size,) * 2
    )
    # Not in inference mode, if that is on: its tensors take no part in autograd, by which callers look for paths.
    with torch.inference_mode(False), torch.enable_grad():
        try:
            with watch():
                return _run(backbone, size, torch.device("meta"))
        except (RuntimeError, NotImplementedError):  # constants that are no buffers, or operators without a meta kernel
            with watch():
                return _run(backbone, size, backbone.get_buffer("_mean").device)


def _run(backbone: Backbone, size: tuple[int, int], device: torch.device) -> Tensor:
    state = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    stand_ins = {name: value.detach().to(device, copy=True) for name, value in state.items()}
    images = torch.zeros(2, len(backbone.get_buffer("_mean")), *size, device=device)
    features: Tensor = functional_call(backbone, stand_ins, (images,))
    return features


def _bound_size(network: nn.Module) -> tuple[int, int] | None:
    """Return the height and width that position embeddings were made for, where a part of the network says so."""
    for part in network.modules():
        found = getattr(part, "img_size", None)
        if isinstance(found, (tuple, list)) and len(found) == 2:
            return int(found[0]), int(found[1])
    return None
