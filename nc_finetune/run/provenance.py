"""Where a result came from: versions, commit, platform, device."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("nc-finetune", "torch", "torchvision", "lightning", "torchmetrics", "timm", "datasets", "numpy", "pillow")
_FILE = Path(__file__)


def _git(*words: str) -> str | None:
    command = ["git", "-C", str(_FILE.parent), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None


def git_state() -> dict[str, Any]:
    """Return commit and dirty flag of the checkout that the package runs from; ``None`` each outside of one."""
    # An environment may lie inside somebody else's repository: only a tracked file shows that this is ours.
    tracked = _git("ls-files", "--error-unmatch", _FILE.name) is not None
    return {
        "git_commit": _git("rev-parse", "HEAD") if tracked else None,
        "git_dirty": bool(_git("status", "--porcelain")) if tracked else None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Return what all runs of this process share: versions, commit, platform, device, threads."""
    cuda = torch.cuda.is_available()
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        **git_state(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if cuda else (platform.processor() or platform.machine()),
        "threads": torch.get_num_threads(),
    }
