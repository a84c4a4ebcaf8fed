"""A forward pass that needs neither data nor memory, to see what it calls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

Watch = Callable[[], AbstractContextManager[object]]
_NORMS = (F.batch_norm, F.group_norm, F.layer_norm)


def dry_run(module: nn.Module, image_shape: tuple[int, int, int], watch: Watch) -> Tensor:
    """Run a module on two blank images on the meta device, or where its weights are if it does not run there.

    Parameters and buffers are stood in for, and need no gradient; the module is left as it was.

    Args:
        module: Takes images and gives one tensor.
        image_shape: ``(3, H, W)`` of the images.
        watch: Makes the context in which it runs, such as hooks; called anew for a second attempt.

    Returns:
        What it gives.

    Example:
        >>> from contextlib import nullcontext
        >>> dry_run(nn.Conv2d(3, 8, 1), (3, 4, 4), nullcontext)
        tensor(..., device='meta', size=(2, 8, 4, 4))
    """
    # Not in inference mode, if that is on: its tensors take no part in autograd, by which callers look for paths.
    with torch.inference_mode(False), torch.enable_grad():
        try:
            with watch():
                return _run(module, image_shape, torch.device("meta"))
        except (RuntimeError, NotImplementedError):  # constants that are no buffers, or operators without a meta kernel
            with watch():
                return _run(module, image_shape, next(chain(module.parameters(), module.buffers())).device)


def _run(module: nn.Module, image_shape: tuple[int, int, int], device: torch.device) -> Tensor:
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    stand_ins = {name: value.detach().to(device, copy=True) for name, value in state.items()}
    with _NormsAtOnce():
        output: Tensor = functional_call(module, stand_ins, (torch.zeros(2, *image_shape, device=device),))
    return output


class _NormsAtOnce(TorchFunctionMode):
    """Lets a norm give a copy of what it gets: on the meta device torch takes milliseconds to come to its shape."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _NORMS and args and args[0].is_meta:
            return args[0].clone()
        return func(*args, **(kwargs or {}))
