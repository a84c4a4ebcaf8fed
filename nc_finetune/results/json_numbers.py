"""Numbers for which JSON has no word."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_INFINITE = "Infinity"
# Where it matters whether a value is infinite or not known: the classes that have collapsed least have no larger one.
_MAY_BE_INFINITE = ("class_spread", "closest_pairs")


def to_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``nan`` and infinities into null; infinite spreads of classes and CDNV of pairs into a text.

    Args:
        record: Of a run.

    Returns:
        A copy that JSON can hold.

    Example:
        >>> to_json({"nc1": math.inf, "class_spread": {"cat": math.inf, "dog": math.nan}})
        {'nc1': None, 'class_spread': {'cat': 'Infinity', 'dog': None}}
    """
    told = {
        name: {of: _INFINITE if value == math.inf else value for of, value in record[name].items()}
        for name in _MAY_BE_INFINITE
        if name in record
    }
    return {name: _without_nonfinite(value) for name, value in {**record, **told}.items()}


def from_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the text back into the number; anything else is as it was.

    Example:
        >>> from_json({"class_spread": {"cat": "Infinity", "dog": None}})
        {'class_spread': {'cat': inf, 'dog': None}}
    """
    told = {
        name: {of: math.inf if value == _INFINITE else value for of, value in record[name].items()}
        for name in _MAY_BE_INFINITE
        if isinstance(record.get(name), dict)
    }
    return {**record, **told}


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nonfinite(item) for item in value]
    return value
