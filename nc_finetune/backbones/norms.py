"""What a normalisation layer is, whichever library it comes from, and BatchNorm over all processes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm, _NormBase

# Those of torch, and with them whatever is derived from them in timm, open_clip or transformers.
_TORCH_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# Others say so in the name of their class: RmsNorm, SimpleNorm2d, EvoNorm2dS0, FilterResponseNormTlu2d, InplaceAbn.
_NAME = re.compile(r"norm|abn$", re.IGNORECASE)


def is_norm(module: nn.Module) -> bool:
    """Say whether a module is a normalisation layer.

    That is one of torch's, one derived from them, or a module whose class is called so, has vectors as its only own
    parameters, and no parts that have any: ``NormMlpClassifierHead`` and ``NormFreeBlock`` are none.

    Args:
        module: Any module.

    Example:
        >>> import timm
        >>> is_norm(timm.layers.RmsNorm2d(8)), is_norm(nn.Linear(8, 8)), is_norm(nn.BatchNorm2d(8))
        (True, False, True)
    """
    if isinstance(module, _TORCH_NORMS):
        return True
    if not any(_NAME.search(kind.__name__) for kind in type(module).__mro__):
        return False
    own = list(module.parameters(recurse=False))
    vectors = all(sum(size > 1 for size in value.shape) <= 1 for value in own)
    statistics = any(True for _ in module.buffers(recurse=False))  # FrozenBatchNorm2d
    return (bool(own) or statistics) and vectors and len(own) == len(list(module.parameters()))


def norm_width(norm: nn.Module) -> int:
    """Return how many features a normalisation layer sees.

    Raises:
        ValueError: If nothing in it says so, since it has neither scale, shift nor statistics.

    Example:
        >>> norm_width(nn.LayerNorm(8)), norm_width(nn.GroupNorm(2, 6))
        (8, 6)
    """
    if isinstance(norm, (nn.LayerNorm, nn.RMSNorm)):
        return int(norm.normalized_shape[-1])
    for name in ("num_features", "num_channels", "normalized_shape"):
        found = getattr(norm, name, None)
        if found is not None:
            return int(found if isinstance(found, int) else found[-1])
    for value in (*norm.parameters(recurse=False), *norm.buffers(recurse=False)):
        if value.numel() > 1:
            return value.numel()
    raise ValueError(f"a {type(norm).__name__} without parameters does not say how wide it is")


def norm_is_channels_last(norm: nn.Module) -> bool:
    """Say whether a normalisation layer sees maps as ``(N, H, W, D)``; the alternative is ``(N, D, H, W)``.

    Example:
        >>> import timm
        >>> norm_is_channels_last(nn.LayerNorm(8)), norm_is_channels_last(timm.layers.LayerNorm2d(8))
        (True, False)
    """
    return not isinstance(norm, (_NormBase, nn.GroupNorm)) and "2d" not in type(norm).__name__


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

    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return {**dict.fromkeys(plain, SyncBatchNorm), BatchNormAct2d: SyncBatchNormAct}
