"""Methods around another one: what they do not decide themselves, the other one decides."""

from __future__ import annotations

import abc
from typing import Any, TypeVar

from nc_finetune.methods.base import FinetuningMethod

Wrapper = TypeVar("Wrapper", bound=FinetuningMethod)


class _OfInner:
    """An attribute that is the wrapped method's, to read and to set."""

    def __set_name__(self, _owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, _owner: type) -> Any:
        if instance is not None:
            return getattr(instance.inner, self.name)
        default = getattr(FinetuningMethod, self.name, None)
        return self if getattr(default, "__isabstractmethod__", False) else default

    def __set__(self, instance: Any, value: Any) -> None:
        setattr(instance.inner, self.name, value)


def public_names() -> tuple[str, ...]:
    """Return every name by which others ask a method something: of attributes, properties and functions.

    Example:
        >>> "freeze" in public_names(), "rest_learning_rate" in public_names()
        (True, True)
    """
    found = {**FinetuningMethod.__annotations__, **vars(FinetuningMethod)}
    return tuple(name for name in found if not name.startswith("_"))


def asks_inner(wrapper: type[Wrapper]) -> type[Wrapper]:
    """Let a class of methods ask another one for everything that it does not define itself.

    That is its ``method``, or its ``inner`` where it has such a property.

    That holds for whatever :class:`~nc_finetune.methods.FinetuningMethod` has, or will have: nobody has to remember to
    pass it on.
    """
    if not hasattr(wrapper, "inner"):
        wrapper.inner = property(lambda self: self.method)  # type: ignore[attr-defined]
    for name in public_names():
        if name not in vars(wrapper):
            attribute = _OfInner()
            attribute.__set_name__(wrapper, name)
            setattr(wrapper, name, attribute)
    return abc.update_abstractmethods(wrapper)
