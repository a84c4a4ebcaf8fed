"""The most memory that a run has used."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import torch


def reset_peak_memory() -> None:
    """Begin to look for the most memory anew."""
    gc.collect()  # trainers and models refer to each other: those of the last run are still there
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: start the high-water mark of this process anew
    except OSError:
        return


def peak_memory() -> int | None:
    """Return the most memory in use since the reset: of the accelerator, or of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
