"""What all pictures of a benchmark share: Vega-Lite specifications, one source for the page and for the PNG files."""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from PIL import Image

from nc_finetune.errors import missing_extra
from nc_finetune.report._tables.variants import METHOD_LABELS, Variant
from nc_finetune.results.result import Measure

_EXTRA = {"altair": "altair", "vl_convert": "vl-convert-python", "jinja2": "jinja2", "scipy": "scipy"}
# Okabe & Ito, Color Universal Design (2008); first the four that stand out on white and on black.
_COLOURS = ("#CC79A7", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#999999", "#F0E442")
# One fewer than the colours: a pair comes back only after 56 methods.
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
# The four methods of the mission have the colours that stand out; after side FT the rest follow in the tables' order.
_FIRST_METHODS = ("linear_probe", "layer_ft", "scl_ft", "full_ft", "side_ft")
_STYLED_METHODS = (*_FIRST_METHODS, *(name for name in METHOD_LABELS if name not in _FIRST_METHODS))
_HEIGHT = 320
_PNG_SCALE = 2.0
# Vega's expressions for the ends of what is shown.
_LEAST, _MOST = (f"extent(pluck(data('shown'), '{{field}}'))[{end}]" for end in (0, 1))
_MOST_OF_ALL_TICKS = 900  # times the least: nine of them; beyond, powers of ten alone
_LEGEND_SYMBOL, _LEGEND_LETTER = 32, 7  # pixels, generous for letters of 12 pixels
Points = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Style:
    """How one method looks in every picture.

    Attributes:
        colour: Colour as ``#RRGGBB``.
        shape: Name of a Vega symbol; whoever cannot tell the colours apart goes by it.
    """

    colour: str
    shape: str


@dataclass(frozen=True)
class Figure:
    """One picture.

    Attributes:
        caption: What it shows, for everybody.
        description: What is to be seen in it, for whoever cannot see it.
        spec: The Vega-Lite specification, its data included.
    """

    caption: str
    description: str
    spec: dict[str, Any]


def check_report_extra() -> None:
    """Import what a report needs: a benchmark calls this before it trains, not to fail after it.

    Raises:
        ImportError: If a package of the extra ``report`` is not installed.
    """
    for module, package in _EXTRA.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise missing_extra(package, "report", "writing a report") from error


def altair() -> Any:
    """Import altair only when something is drawn: it is an extra."""
    import altair as library

    return library


def palette(labels: Mapping[Variant, str]) -> dict[str, Style]:
    """Choose a colour and a shape for every display name; those of the four methods are always the same.

    Args:
        labels: Display names, from :func:`~nc_finetune.report._tables.summary.row_labels`.

    Returns:
        Style by display name, in the order of the labels.

    Example:
        >>> palette({Variant(method="scl_ft", key_layer="layer3.0", head="linear", loss="cross_entropy"): "SCL-FT"})
        {'SCL-FT': Style(colour='#D55E00', shape='triangle-up')}
    """
    styles: dict[str, Style] = {}
    free, reserved = len(_STYLED_METHODS), set(_STYLED_METHODS)
    for variant, label in labels.items():
        if label in styles:
            continue
        if variant.method in reserved:
            reserved.remove(variant.method)
            index = _STYLED_METHODS.index(variant.method)
        else:
            index, free = free, free + 1
        styles[label] = Style(_COLOURS[index % len(_COLOURS)], _SHAPES[index % len(_SHAPES)])
    return styles


def method_channels(alt: Any, points: Points, styles: Mapping[str, Style]) -> tuple[Any, Any]:
    """Encode the method as colour and as shape; the same field and title make Vega-Lite draw one legend for both."""
    present = {point["method"] for point in points}
    names = [label for label in styles if label in present]
    # With its own limit Vega leaves out all methods but thirty.
    legend = alt.Legend(title=None, orient="top", symbolStrokeWidth=2, labelLimit=300, symbolLimit=0)
    colour = alt.Scale(domain=names, range=[styles[name].colour for name in names])
    shape = alt.Scale(domain=names, range=[styles[name].shape for name in names])
    return (
        alt.Color("method:N", scale=colour, legend=legend),
        alt.Shape("method:N", scale=shape, legend=legend),
    )


def measure_in(points: Points) -> Measure:
    """Name the measure that points, all with the same one, hold under its name."""
    found: Measure = next(measure for measure in get_args(Measure) if measure in points[0])
    return found


def _round_down(value: str) -> str:
    """Write an expression for the largest of 1, 2, 5, 10, … that is not above a value."""
    decade = f"pow(10, floor(log({value}) / LN10))"
    return f"{decade} * ({value} < 2 * {decade} ? 1 : {value} < 5 * {decade} ? 2 : 5)"


def log_axis(alt: Any, field: str, channel: str) -> dict[str, Any]:
    """Draw a log scale from one of 1, 2, 5, 10, … to another: by itself Vega draws a grid line for each of the digits.

    Its ends are expressions, like those of :func:`accuracy_axis`: the page draws other points by the same picture.
    """
    low, high = (f"clamp({value}, 1e-300, 1e300)" for value in (f"{_LEAST} / 1.1", f"1 / ({_MOST} * 1.1)"))
    ends = _round_down(low), f"1 / ({_round_down(high)})"  # 1 / 2 is 5e-1, 1 / 5 is 2e-1
    many = f"domain('{channel}')[1] / domain('{channel}')[0] > {_MOST_OF_ALL_TICKS}"
    drawn = f"test({many} ? /^1e/ : /^[125]e/, format(datum.value, '~e'))"
    shown = alt.condition(drawn, alt.value(1), alt.value(0))
    axis = alt.Axis(
        format="~g",  # of what is pointed at; Vega would leave out labels by it
        labelExpr=f"{drawn} ? format(datum.value, '~g') : ''",
        labelOverlap=True,
        gridOpacity=shown,
        tickOpacity=shown,
    )
    return {"scale": alt.Scale(type="log", domain=_expressions(alt, ends, field), nice=False), "axis": axis}


def accuracy_axis(alt: Any, measure: Measure) -> Any:
    """Frame accuracies, or average precisions, closely: above zero, the methods would lie on each other."""
    margin = f"max(0.05 * ({_MOST} - {_LEAST}), 0.5)"
    ends = f"max({_LEAST} - {margin}, 0)", f"min({_MOST} + {margin}, 100)"
    scale = alt.Scale(domain=_expressions(alt, ends, measure), zero=False, nice=True)
    return alt.Y(f"{measure}:Q", title=f"test {measure} %", scale=scale)


def accuracy_tip(alt: Any, measure: Measure) -> Any:
    """Tell the accuracy of the point that is pointed at."""
    return alt.Tooltip(f"{measure}:Q", format=".2f", title=f"{measure} %")


def _expressions(alt: Any, ends: Sequence[str], field: str) -> list[Any]:
    return [alt.ExprRef(end.format(field=field)) for end in ends]


def lines_with_dots(
    alt: Any, points: Points, styles: Mapping[str, Style], size: int, tooltip: Sequence[Any], **axes: Any
) -> Any:
    """Draw a line a method, with a dot of a size at each point that tells about itself."""
    colour, shape = method_channels(alt, points, styles)
    base = alt.Chart(alt.Data(values=[])).encode(color=colour, **axes)
    dots = base.mark_point(filled=True, size=size, opacity=1).encode(shape=shape, tooltip=list(tooltip))
    return alt.layer(base.mark_line(), dots)


def finish(chart: Any, points: Points, width: int, sized: bool = True) -> dict[str, Any]:
    """Finish a chart; colours of text and lines are left to whoever shows it, on white or on black.

    Args:
        chart: An altair chart.
        points: What it shows, each with its ``method``.
        width: Of the picture, in pixels.
        sized: Whether the chart takes width and height; a chart of panels has them inside.
    """
    column = _LEGEND_SYMBOL + _LEGEND_LETTER * max((len(point["method"]) for point in points), default=0)
    finished = (
        (chart.properties(width=width, height=_HEIGHT) if sized else chart)
        .configure_axis(labelFontSize=11, titleFontSize=12)
        .configure_legend(labelFontSize=12, columns=max(1, width // column))
    )
    # Altair would check every point against its schema, which takes longer than all the rest.
    data = {"name": "shown", "values": [dict(point) for point in points]}
    spec: dict[str, Any] = {**finished.to_dict(validate=False), "data": data}
    return spec


def vegalite_version() -> str:
    """Say which Vega-Lite the specifications are written for.

    Returns:
        Major and minor version, e.g. ``"v6.1"``: what vl-convert wants to be told.
    """
    return str(altair().SCHEMA_VERSION).rsplit(".", 1)[0]


def to_png(figure: Figure) -> bytes:
    """Draw a figure for markdown: twice the pixels, on white."""
    import vl_convert

    drawn = vl_convert.vegalite_to_png(figure.spec, vl_version=vegalite_version(), scale=_PNG_SCALE)
    # Reports are committed: with a palette, packed well and without an alpha channel, a picture takes a tenth.
    few = (
        Image.open(io.BytesIO(drawn))
        .convert("RGB")
        .quantize(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    )
    packed = io.BytesIO()
    few.save(packed, "PNG", optimize=True)
    return packed.getvalue()
