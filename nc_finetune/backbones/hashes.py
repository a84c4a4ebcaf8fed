"""Hash weights, and all that a network's outputs follow from: these, and what its modules are built with."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import importlib.metadata
import inspect
import sys
import types
from collections.abc import Collection, Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What torch keeps in every module for itself: the parameters are hashed by themselves.
_TORCHS_OWN = frozenset(vars(nn.Module())) - {"training"} | {"_compiled_call_impl"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_OF_TORCH = (torch.dtype, torch.device, torch.memory_format, torch.layout)
_PLAIN = (int, float, complex, str, bytes, enum.Enum, *_OF_TORCH)
_LONG = 200


def weights_hash(module: nn.Module) -> str:
    """Hash every parameter and buffer by name, dtype, shape and bytes.

    Args:
        module: The network.

    Returns:
        SHA-256 in hexadecimal, the same wherever the same weights are.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = weights_hash(layer)
        >>> _ = nn.init.zeros_(layer.bias)
        >>> weights_hash(layer) == before
        False
    """
    return state_hash(module.state_dict())


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Hash tensors by name, dtype, shape and bytes; :func:`weights_hash` of a part of a network.

    Args:
        state: Tensors by name; their order counts.

    Returns:
        SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def module_key(
    module: nn.Module,
    leave_out: Collection[nn.Module] = (),
    without: Collection[Tensor] = (),
    unnamed: Collection[str] = (),
) -> str:
    """Hash what the outputs of a module follow from.

    That is of every module inside: its class and the code of its methods, its attributes, be they in its ``repr`` or
    not (the epsilon of a norm, an activation function, a scale, whether it trains), its hooks, and its parameters and
    buffers; and the versions of the packages that the classes are from.

    Args:
        module: The module; what is in it twice counts under its first name.
        leave_out: Modules inside that do not count.
        without: Parameters and buffers that do not count.
        unnamed: Attributes of the module itself that do not count.

    Returns:
        BLAKE2b in hexadecimal: the same for modules that were built alike, in any process of one installation.

    Example:
        >>> one, other = nn.LayerNorm(4), nn.LayerNorm(4, eps=1e-3)
        >>> module_key(one) == module_key(nn.LayerNorm(4)), module_key(one) == module_key(other)
        (True, False)
    """
    aside, skipped = set(map(id, leave_out)), set(map(id, without))
    inside = {part: name for name, part in module.named_modules() if id(part) not in aside}
    digest = hashlib.blake2b(digest_size=16)
    describe = _Description(inside)
    for part, name in inside.items():
        values = {key: value for key, value in vars(part).items() if part is not module or key not in unnamed}
        text = f"{name}: {describe.value(type(part))} {''.join(describe.attributes(values))}"
        digest.update(text.encode("utf-8", "backslashreplace"))
    named = (*module.named_parameters(), *module.named_buffers())
    digest.update(state_hash({name: value for name, value in named if id(value) not in skipped}).encode())
    digest.update(repr(sorted(_versions({type(part) for part in inside}))).encode())
    return digest.hexdigest()


def _versions(kinds: Collection[type]) -> Iterator[tuple[str, str]]:
    for package in {kind.__module__.partition(".")[0] for kind in kinds} | {"torch"}:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a script, or a package under another name
            yield package, str(getattr(sys.modules.get(package), "__version__", ""))


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


class _Description:
    """Texts of values that are the same wherever the values are: no addresses, no order of sets.

    Args:
        known: Modules that are described by themselves, and their names.
    """

    def __init__(self, known: Mapping[nn.Module, str]) -> None:
        self._known = known
        self._open: set[int] = set()
        self._done: dict[int, tuple[Any, str]] = {}  # with the values, lest their places be taken by others

    def attributes(self, values: Mapping[str, Any]) -> Iterator[str]:
        """Describe the attributes of a module that are not torch's own, and its hooks."""
        for name in sorted(values):
            if name not in _TORCHS_OWN:
                yield f"{name}={self.value(values[name])};"
            elif name in _HOOKS:
                yield f"{name}={self.value(list(values[name].values()))};"

    def value(self, value: Any) -> str:
        """Describe any value."""
        if value is None or isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, nn.Module) and value in self._known:
            return f"module {self._known[value]}"
        if id(value) in self._open:
            return "what this is in"
        if id(value) not in self._done:
            self._open.add(id(value))
            text = self._compound(value)
            self._open.discard(id(value))
            self._done[id(value)] = value, text if len(text) < _LONG else _digest(text)
        return self._done[id(value)][1]

    def _compound(self, value: Any) -> str:
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{self.value(key)}: {self.value(part)}' for key, part in value.items())}}}"
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self.value, value))}]"
        if isinstance(value, Set):
            return f"set of {sorted(map(self.value, value))}"
        if isinstance(value, (Tensor, np.ndarray)):
            return state_hash({"": torch.as_tensor(value)})
        if isinstance(value, nn.Module):  # beside the tree of modules
            return f"{_name(type(value))} {module_key(value)}"
        if isinstance(value, type):
            return self._kind(value)
        if isinstance(value, functools.partial):
            return f"partial {self.value([value.func, value.args, value.keywords])}"
        if isinstance(value, (types.FunctionType, types.MethodType, types.BuiltinFunctionType)):
            return self._function(value)
        state = _state(value)
        plain = "" if state or " at 0x" in repr(value) else repr(value)
        return f"{_name(type(value))} {plain}{self.value(state)}"

    def _function(self, function: Any) -> str:
        """Describe a function by its name, its code and what it has from where it was made."""
        bound = getattr(function, "__self__", None)
        plain = inspect.unwrap(getattr(function, "__func__", function))
        code = getattr(plain, "__code__", None)
        if code is None:
            return f"{getattr(plain, '__module__', '')}.{getattr(plain, '__qualname__', type(plain).__qualname__)}"
        cells = [cell.cell_contents for cell in plain.__closure__ or () if _is_filled(cell)]
        parts = self.value([plain.__defaults__, plain.__kwdefaults__, cells])
        owner = "" if bound is None or isinstance(bound, nn.Module) else f" of {_name(type(bound))}"
        return f"{_name(plain)}{owner} {self._code(code)} {parts}"

    def _code(self, code: types.CodeType) -> str:
        """Hash the code of a function, and of those inside it."""
        parts = [self._code(part) if isinstance(part, types.CodeType) else self.value(part) for part in code.co_consts]
        return _digest(repr((code.co_code, code.co_names, parts)))

    def _kind(self, kind: type) -> str:
        """Describe a class by its name and, of a module, the code of its methods."""
        if not issubclass(kind, nn.Module):
            return _name(kind)
        own = kind.__mro__[: kind.__mro__.index(nn.Module)]
        methods = [_plain(value) for part in own for _, value in sorted(vars(part).items(), key=lambda one: one[0])]
        return f"{_name(kind)} {[self._function(one) for one in methods if isinstance(one, types.FunctionType)]}"


def _plain(method: Any) -> Any:
    return method.fget if isinstance(method, property) else getattr(method, "__func__", method)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def _state(value: Any) -> Any:
    """Return what an object of any class holds."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(value, "__dict__"):
        return dict(vars(value))
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return {name: getattr(value, name) for name in slots if isinstance(name, str) and hasattr(value, name)}


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
