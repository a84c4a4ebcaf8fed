"""Where to compute."""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    """Return the accelerator, if there is one, or the CPU.

    Example:
        >>> best_device().type in ("cpu", "cuda", "mps", "xpu")
        True
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
