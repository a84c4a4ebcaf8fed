"""Names of the classes that a room has to offer, read off its exports."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


def class_names(exports: Mapping[str, Any], base: type) -> tuple[str, ...]:
    """Return the names of the exported classes that can be built, in the order in which they are exported.

    Args:
        exports: ``globals()`` of the room.
        base: What they derive from.

    Example:
        >>> import collections.abc
        >>> class_names({"Sized": collections.abc.Sized, "list": list, "int": int}, collections.abc.Sized)
        ('list',)
    """
    found = {name: kind for name, kind in exports.items() if isinstance(kind, type) and issubclass(kind, base)}
    return tuple(name for name, kind in found.items() if not inspect.isabstract(kind))
