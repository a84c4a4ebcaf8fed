"""Objects as JSON and back: the path of a class, and what it was built with."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from nc_finetune._common.trust import MODEL_PARTS, is_model_part

_DEPRECATED = ("size_average", "reduce")  # arguments of torch's losses, which those do not keep
_DEEPEST = 50  # levels of a description


def describe(value: Any) -> Any:
    """Write down how an object is built again.

    An object is described by its class and by the attributes that are called like the arguments of its ``__init__``
    (scikit-learn's convention); a class or a ``functools.partial`` of one as what is still to be called.

    Args:
        value: A number, text, ``None``, a list, tuple or mapping of what can be described, a class, a partial, or an
            object that keeps its arguments.

    Returns:
        What JSON can hold; classes are ``{"class_path": ..., "init_args": {...}}``, with ``"partial": True`` where
        they are still to be called.

    Raises:
        TypeError: If there is no such description, e.g. of a lambda, a local class or a tensor.

    Example:
        >>> from torch import nn
        >>> describe(partial(nn.Linear, bias=False))
        {'class_path': 'torch.nn.modules.linear.Linear', 'init_args': {'bias': False}, 'partial': True}
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if inspect.isclass(value) or isinstance(value, partial):
        return _describe_factory(value)
    return {"class_path": _class_path(type(value)), "init_args": _kept_arguments(value)}


def describe_if_possible(value: Any) -> Any:
    """Return :func:`describe`'s answer, or ``None`` where there is none."""
    try:
        return describe(value)
    except TypeError:
        return None


def build(config: Any, trust: bool = False, *, depth: int = 0) -> Any:
    """Build what :func:`describe` wrote down.

    Args:
        config: The description.
        trust: Import any class that is named; otherwise parts of models alone, see :mod:`nc_finetune._common.trust`.
        depth: In how many descriptions this one lies; more than 50 are refused.

    Returns:
        The object, or a ``functools.partial`` of a class that is still to be called. Lists come back as tuples: JSON
        cannot tell them apart, and tuples can be compared and hashed.

    Raises:
        ValueError: If a class is not trusted, not there, or does not take its arguments, or they are nested too deeply.

    Example:
        >>> build({"class_path": "torch.nn.Linear", "init_args": {"in_features": 4, "out_features": 2}})
        Linear(in_features=4, out_features=2, bias=True)
    """
    if depth > _DEEPEST:
        raise ValueError(f"the description of the model is more than {_DEEPEST} levels deep; it is damaged")
    inside = partial(build, trust=trust, depth=depth + 1)
    if isinstance(config, list):
        return tuple(map(inside, config))
    if not isinstance(config, Mapping):
        return config
    if "class_path" not in config:
        return {key: inside(item) for key, item in config.items()}
    found = _find_class(config["class_path"], trust)
    arguments = inside(config.get("init_args", {}))
    if config.get("partial"):
        return partial(found, **arguments)
    try:
        return found(**arguments)
    except TypeError as error:
        raise ValueError(f"{config['class_path']} does not take the arguments {arguments}: {error}") from error


def _describe_factory(factory: Any) -> dict[str, Any]:
    if not isinstance(factory, partial):
        return {"class_path": _class_path(factory), "init_args": {}, "partial": True}
    # jsonargparse calls a class through functions of its own: partial(function, ..., class, **keywords).
    words = [factory.func, *factory.args]
    found = next((word for word in words if inspect.isclass(word)), factory.func)
    if words[-1] is not found:
        raise TypeError(f"positional arguments of {factory} have no names; pass them by keyword")
    path = _class_path(found)
    defaults = inspect.signature(found).parameters
    # jsonargparse passes defaults, too; without them both ways to ask for the same have one description.
    arguments = {
        name: describe(value)
        for name, value in factory.keywords.items()
        if name not in defaults or value is not defaults[name].default
    }
    return {"class_path": path, "init_args": arguments, "partial": True}


def _class_path(found: Any) -> str:
    if not inspect.isclass(found) or "<locals>" in found.__qualname__:
        raise TypeError(f"{found!r} is no class that can be imported by name")
    return f"{found.__module__}.{found.__qualname__}"


def _kept_arguments(value: Any) -> dict[str, Any]:
    try:
        names = list(inspect.signature(type(value)).parameters)
    except ValueError as error:  # Classes written in C, such as torch.Tensor, tell no arguments.
        raise TypeError(f"{type(value).__name__} does not tell its arguments: {error}") from error
    names = [name for name in names if name not in _DEPRECATED or hasattr(value, name)]
    if lost := [name for name in names if not hasattr(value, name)]:
        raise TypeError(f"{type(value).__name__} keeps no attribute {lost[0]!r}")
    return {name: describe(getattr(value, name)) for name in names}


def _find_class(path: str, trust: bool) -> Any:
    """Import a class; a trusted package that merely imports a foreign one does not lend it its name."""
    packages = ", ".join(f"{package}.*" for package in MODEL_PARTS)
    if not isinstance(path, str) or not (trust or is_model_part(path)):
        raise ValueError(f"{path} is outside {packages}; pass trust=True if you trust the file")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no class {path!r}: {error}; install what brings it") from error
    if not inspect.isclass(found) or not (trust or is_model_part(found.__module__)):
        raise ValueError(f"{path!r} is no class of {packages}")
    return found
