"""Figures of collapse."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nc_finetune._common.heat_map import draw_heat_map, heat_map_size
from nc_finetune.callbacks._collapse.history import Row
from nc_finetune.errors import missing_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_LABELS = 40
_MAX_LEGEND = 8
_SHARES = ("accuracy", "r_squared")  # at most 1, and best there: a logarithm would flatten what matters


def _new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, no state shared with the user's own figures
    except ImportError as error:
        raise missing_extra("matplotlib", "plot", "the figure of collapse by layer") from error
    return Figure(figsize=(width, height), layout="constrained")


def draw_layers(history: Sequence[Row], keys: Mapping[str, str], title: str) -> Figure:
    """Draw a measure against depth: one line an epoch, on a logarithmic scale.

    Args:
        history: The rows of a callback.
        keys: The key in a row by name of the layer, in order.
        title: Name of the measure.

    Returns:
        The figure. Values that are not positive have no place on the scale and leave a gap.

    Raises:
        ImportError: If matplotlib is not installed; the message names the extra.

    Example:
        >>> rows = [{"epoch": 0, "step": 5, "nc1/stem": 2.0, "nc1/penultimate": 0.5}]
        >>> figure = draw_layers(rows, {"stem": "nc1/stem", "penultimate": "nc1/penultimate"}, "nc1")
        >>> figure.axes[0].get_yscale()
        'log'
    """
    figure = _new_figure(max(5.0, min(14.0, 1.5 + 0.35 * len(keys))), 4.2)
    axes = figure.add_subplot()
    rows = [row for row in history if any(key in row for key in keys.values())]
    from matplotlib import colormaps

    for number, row in enumerate(rows):
        values = [_positive(row.get(key, math.nan)) for key in keys.values()]
        colour = colormaps["viridis"](0.9 * number / max(1, len(rows) - 1))
        axes.plot(range(len(keys)), values, marker="o", markersize=3, color=colour, label=_moment(rows, row))
    step = max(1, math.ceil(len(keys) / _MAX_LABELS))
    axes.set_yscale("log")
    axes.set_xticks(range(0, len(keys), step), list(keys)[::step], rotation=60, ha="right", rotation_mode="anchor")
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
    _add_legend(axes)
    return figure


def draw_classes(table: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Draw a measure of each class, classes downwards and layers across, the darker the less collapsed.

    Args:
        table: By layer and class.
        title: Name of the measure.

    Returns:
        The figure; colours are logarithmic. Values that are not positive, or not finite, are left white.

    Raises:
        ImportError: If matplotlib is not installed; the message names the extra.

    Example:
        >>> draw_classes({"stem": {"cat": 2.0, "dog": 1.0}}, "spread").axes[0].get_yticks().tolist()
        [0, 1]
    """
    figure = _new_figure(*heat_map_size(table))
    draw_heat_map(figure, table, title)
    return figure


def draw_measures(history: Sequence[Row], keys: Sequence[str]) -> Figure:
    """Draw every measure against the epoch, a panel each.

    Args:
        history: The rows of a callback.
        keys: Keys in its rows.

    Returns:
        The figure; scales are logarithmic where all values are positive, but for accuracy and R squared.

    Raises:
        ImportError: If matplotlib is not installed; the message names the extra.

    Example:
        >>> len(draw_measures([{"epoch": 0, "step": 5, "collapse/nc1": 2.0}], ["collapse/nc1"]).axes)
        1
    """
    columns = min(3, len(keys))
    lines = math.ceil(len(keys) / columns)
    figure = _new_figure(3.2 * columns + 0.6, 2.3 * lines)
    for number, key in enumerate(keys):
        axes = figure.add_subplot(lines, columns, number + 1)
        points = [(row["step"], row[key]) for row in history if key in row]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3)
        positive = all(value > 0 for _, value in points)
        axes.set_yscale("log" if positive and not key.endswith(_SHARES) else "linear")
        axes.set_title(key, fontsize="small")
        axes.set_xlabel("step", fontsize="small")
        axes.grid(alpha=0.3)
    return figure


def _positive(value: float) -> float:
    return value if value > 0 and math.isfinite(value) else math.nan


def _moment(rows: Sequence[Row], row: Row) -> str:
    several = sum(other["epoch"] == row["epoch"] for other in rows) > 1
    return f"epoch {row['epoch']:.0f}" + (f", step {row['step']:.0f}" if several else "")


def _add_legend(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > _MAX_LEGEND:  # those in between follow from the order of the colours
        step = math.ceil((len(labels) - 1) / (_MAX_LEGEND - 1))
        shown = sorted({*range(0, len(labels), step), len(labels) - 1})
        handles, labels = [handles[i] for i in shown], [labels[i] for i in shown]
    if labels:
        axes.legend(handles, labels, fontsize="small")


def figure_png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    return data.getvalue()
