"""BatchNorm that takes its statistics over all processes, and what it was before."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm, _BatchNorm

_PLAIN = (BatchNorm1d, BatchNorm2d, BatchNorm3d)


def synchronize(norms: Iterable[nn.Module]) -> list[tuple[nn.Module, type[nn.Module]]]:
    """Let BatchNorm layers take their statistics over all processes, in place.

    Each stays the object that it was, with its name, parameters, statistics, hooks and, as timm's ``BatchNormAct2d``,
    its activation: torch's own conversion builds a plain layer in its place, which drops the activation.

    Args:
        norms: The layers; those that are synchronised already stay as they are.

    Returns:
        The layers with their former classes, for :func:`restore_classes`.

    Warns:
        UserWarning: If a layer is of a class for which nobody knows how.

    Example:
        >>> norm = nn.BatchNorm2d(3)
        >>> before = synchronize([norm])
        >>> type(norm).__name__, restore_classes(before), type(norm).__name__
        ('SyncBatchNorm', None, 'BatchNorm2d')
    """
    before = [(norm, type(norm)) for norm in norms if not isinstance(norm, SyncBatchNorm)]
    known = _synchronised_classes()
    if unknown := sorted({kind.__name__ for _, kind in before if kind not in known}):
        warnings.warn(
            f"no synchronised form of {', '.join(unknown)} is known; each process keeps its own", stacklevel=2
        )
    converted = [(norm, kind) for norm, kind in before if kind in known]
    for norm, kind in converted:
        norm.__class__ = known[kind]
        norm.process_group = None  # type: ignore[assignment]
    return converted


def restore_classes(before: Iterable[tuple[nn.Module, type[nn.Module]]]) -> None:
    """Undo :func:`synchronize`."""
    for norm, kind in before:
        norm.__class__ = kind


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Return the BatchNorm layers in a module."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def _synchronised_classes() -> dict[type[nn.Module], type[nn.Module]]:
    from timm.layers import BatchNormAct2d, SyncBatchNormAct

    return {**dict.fromkeys(_PLAIN, SyncBatchNorm), BatchNormAct2d: SyncBatchNormAct}
