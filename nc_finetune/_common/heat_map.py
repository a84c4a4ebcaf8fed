"""A measure of each class in each layer as a picture."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

Table = Mapping[str, Mapping[str, float]]
_MOST_NAMES, _LONGEST_NAME, _LINE = 40, 24, 30


def heat_map_size(table: Table) -> tuple[float, float]:
    """Return width and height of the figure in inches.

    Args:
        table: By layer and class.

    Example:
        >>> heat_map_size({"stem": {"cat": 2.0}})
        (5.0, 3.0)
    """
    return max(5.0, min(14.0, 2.5 + 0.35 * len(table))), max(3.0, min(12.0, 1.6 + 0.22 * len(_classes(table))))


def draw_heat_map(figure: Any, table: Table, title: str) -> None:
    """Draw classes downwards and layers across, the darker the larger; colours are logarithmic.

    Args:
        figure: A figure of matplotlib without axes.
        table: By layer and class. Values that are not positive, or not finite, are left white.
        title: Name of the measure.
    """
    from matplotlib.colors import LogNorm  # an extra

    classes, axes = _classes(table), figure.add_subplot()
    rows = [[_positive(values.get(name, math.nan)) for values in table.values()] for name in classes]
    known = [value for row in rows for value in row if not math.isnan(value)] or [1.0]
    norm = LogNorm(min(known), max(max(known), 1.001 * min(known)))
    image = axes.imshow(rows, aspect="auto", interpolation="nearest", cmap="viridis_r", norm=norm)
    for axis, names in ((axes.xaxis, list(table)), (axes.yaxis, classes)):
        step = max(1, math.ceil(len(names) / _MOST_NAMES))
        axis.set_ticks(range(0, len(names), step), [_shortened(name) for name in names[::step]])
    axes.tick_params(axis="x", rotation=60)
    figure.colorbar(image, label=textwrap.fill(title, _LINE))  # a longer one would be cut off


def _classes(table: Table) -> list[str]:
    return list(dict.fromkeys(name for values in table.values() for name in values))


def _positive(value: float) -> float:
    return value if value > 0 and math.isfinite(value) else math.nan


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
