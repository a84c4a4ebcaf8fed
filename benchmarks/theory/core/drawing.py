"""How every picture looks: colours and line styles that can be told apart, labelled axes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito, Color Universal Design (2008), the dark ones first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
STYLES = ("-", "--", "-.", ":")
_MAX_POINTS = 150
_DPI = 120


def figure(panels: int, rows: int = 1, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """Make a figure with its panels in reading order."""
    columns = -(-panels // rows)
    made = Figure(figsize=(4.1 * columns, height * rows), layout="constrained")
    axes = made.subplots(rows, columns, squeeze=False)
    return made, [axis for row in axes for axis in row][:panels]


def label(axis: Axes, title: str, x: str, y: str, *, logx: bool = False, logy: bool = False) -> None:
    """Name a panel and its axes."""
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if logx:
        axis.set_xscale("log")
    if logy:
        axis.set_yscale("log")
    axis.grid(alpha=0.25)


def lines(axis: Axes, x: Sequence[float], named: Mapping[str, Sequence[float]], **options: Any) -> None:
    """Draw one line a name, each with its own colour and style, and a legend."""
    for index, (name, values) in enumerate(named.items()):
        style = {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index % len(STYLES)]}
        axis.plot(x[: len(values)], values, label=name, **{**style, **options})
    axis.legend(fontsize=8)


def thin(values: Sequence[Any], limit: int = _MAX_POINTS) -> list[Any]:
    """Keep evenly spaced entries, the last one among them: a picture needs no more."""
    step = max(1, -(-len(values) // limit))
    kept = list(values[::step])
    return kept if (len(values) - 1) % step == 0 else [*kept, values[-1]]


def to_png(drawn: Figure) -> bytes:
    """Write a figure as PNG, the same bytes for the same picture."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
