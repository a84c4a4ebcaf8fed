"""Which classes a recipe may name: reading a file must not run its author's code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

ALLOWED = (
    "nc_finetune",
    "nc_finetune.benchmark.grid",
    "nc_finetune.benchmark.specs",
    "torch.nn",
    "torch.optim",
    "torchvision.transforms",
    "lightning.pytorch.accelerators",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
)
# Of our own: what reads files, writes files, or builds whatever a file describes.
REFUSED = (
    "nc_finetune.benchmark",
    "nc_finetune.class_config",
    "nc_finetune.cli",
    "nc_finetune.delta",
    "nc_finetune.delta_file",
    "nc_finetune.export",
    "nc_finetune.files",
    "nc_finetune.predict",
    "nc_finetune.recipes",
    "nc_finetune.trust",
)
_restricted: ContextVar[bool] = ContextVar("restricted", default=False)


@contextmanager
def only_known_classes(trust: bool) -> Iterator[None]:
    """Let what is read inside name classes of the allow-list alone.

    jsonargparse keeps its list for the rest of the process: a command reads one recipe and ends.

    Args:
        trust: Let it name any class.
    """
    if not trust:
        from jsonargparse import set_parsing_settings

        set_parsing_settings(import_path_denylist=["*", *REFUSED], import_path_allowlist=list(ALLOWED))
    token = _restricted.set(not trust)
    try:
        yield
    finally:
        _restricted.reset(token)


def check_import_path(path: str) -> None:
    """Refuse the path of a class that is not on the allow-list, where :func:`only_known_classes` restricts.

    Args:
        path: The import path.

    Raises:
        ValueError: If it is not on the list.

    Example:
        >>> check_import_path("my.own.Method")  # in Python everything may be named: it is code already
    """
    parts = path.split(".")
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    verdict = next((prefix in ALLOWED for prefix in prefixes if prefix in (*ALLOWED, *REFUSED)), False)
    if _restricted.get() and not verdict:
        raise ValueError(untrusted(path))


def untrusted(path: str) -> str:
    """Say why a path is refused, and what to do."""
    packages = [name for name in ALLOWED if name.rpartition(".")[0] not in REFUSED]
    return f"the recipe names {path}, which is outside {', '.join(packages)}; pass --trust if you trust its author"
