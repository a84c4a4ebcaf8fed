"""More pictures of a benchmark: training size, cost, learning curves and confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nc_finetune.report._tables.analysis import pareto_front, summed_confusion
from nc_finetune.report._tables.groups import grouped
from nc_finetune.report._tables.summary import Row, by_group
from nc_finetune.report._tables.tables import COSTS, cost_text, significant
from nc_finetune.report.figures import (
    Figure,
    Style,
    accuracy_scale,
    altair,
    finish,
    log_axis,
    measure_in,
    method_channels,
)

_WIDTH = 520
_FACET_WIDTH = 240
_IN_BYTES = ("peak memory", "delta size")
Values = list[dict[str, Any]]


def size_values(rows: Sequence[Row]) -> Values:
    """Collect accuracy by training size, with one standard deviation to both sides."""
    return [
        {
            "method": row.label,
            "images": row.train_size,
            row.group.measure: row.accuracy,
            "low": max(row.accuracy - (row.accuracy_sd or 0.0), 0.0),
            "high": min(row.accuracy + (row.accuracy_sd or 0.0), 100.0),
            "seeds": row.seeds,
            "group": row.group.label,
            "series": row.group.series,
        }
        for row in rows
        if row.train_size and row.accuracy is not None
    ]


def _line(value: Mapping[str, Any]) -> tuple[str, str]:
    return value["series"], value["method"]


def accuracy_against_size(rows: Sequence[Row], styles: Mapping[str, Style]) -> Figure | None:
    """Draw test accuracy against the number of training images, a line per method, a panel per data set and backbone.

    Returns:
        The figure; ``None`` where no method was measured at two sizes.
    """
    values = size_values(rows)
    if not any(len({value["images"] for value in line}) > 1 for line in grouped(values, _line).values()):
        return None
    caption = f"Test {measure_in(values)} against training images, mean over seeds ± standard deviation (log scale)."
    return Figure(caption, _size_description(values), _size_spec(values, styles))


def _size_description(values: Values) -> str:
    measure, by_size = measure_in(values), sorted(values, key=lambda value: value["images"])
    parts = [
        f"{series}, {method}: {line[0][measure]:.1f} % at {line[0]['images']:.0f} images to"
        f" {line[-1][measure]:.1f} % at {line[-1]['images']:.0f}"
        for (series, method), line in grouped(by_size, _line).items()
        if len(line) > 1
    ]
    return f"Line chart of test {measure} against training images. {'; '.join(parts)}."


def _size_spec(values: Values, styles: Mapping[str, Style]) -> dict[str, Any]:
    alt, measure = altair(), measure_in(values)
    colour, shape = method_channels(alt, values, styles)
    axis = alt.Axis(format="~s", labelOverlap=True, grid=False)
    scale = alt.Scale(type="log", nice=False, padding=12)
    base = alt.Chart(alt.Data(values=[])).encode(
        x=alt.X("images", type="quantitative", title="training images", scale=scale, axis=axis),
        color=colour,
    )
    accuracy = alt.Y(measure, type="quantitative", title=f"test {measure} %", scale=alt.Scale(zero=False))
    tooltip = [
        alt.Tooltip("method", type="nominal"),
        alt.Tooltip("images", type="quantitative", title="training images"),
        alt.Tooltip(measure, type="quantitative", format=".2f", title=f"{measure} %"),
        alt.Tooltip("seeds", type="quantitative"),
        alt.Tooltip("series", type="nominal", title="on"),
    ]
    spread = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(
        y=alt.Y("low", type="quantitative", title=f"test {measure} %"), y2=alt.Y2("high")
    )
    layers = alt.layer(
        base.mark_line().encode(y=accuracy),
        spread,
        base.mark_point(filled=True, size=60, opacity=1).encode(y=accuracy, shape=shape, tooltip=tooltip),
    )
    series = list(dict.fromkeys(value["series"] for value in values))
    if len(series) == 1:
        return finish(layers, values, _WIDTH)
    columns = min(len(series), 3)
    panels = layers.properties(width=_FACET_WIDTH, height=_FACET_WIDTH).facet(
        facet=alt.Facet("series", type="nominal", title=None, header=alt.Header(labelLimit=_FACET_WIDTH)),
        columns=columns,
    )
    return finish(panels.resolve_scale(y="independent"), values, _FACET_WIDTH * columns, sized=False)


def cost_values(rows: Sequence[Row]) -> Values:
    """Collect accuracy by each cost, and whether a row is on the Pareto front of its group."""
    values = []
    for group, members in by_group(rows).items():
        for column, attribute in COSTS.items():
            front = pareto_front(members, attribute)
            for row in members:
                if (cost := getattr(row, attribute)) is not None and row.accuracy is not None:
                    values.append(
                        {
                            "method": row.label,
                            "kind": column,
                            "cost": cost,
                            "text": cost_text(column, cost),
                            group.measure: row.accuracy,
                            "front": "yes" if row in front else "no",
                            "group": group.label,
                        }
                    )
    return [value for value in values if value["cost"] > 0]


def accuracy_against_cost(rows: Sequence[Row], styles: Mapping[str, Style]) -> Figure | None:
    """Draw test accuracy against the time of an epoch, or else the tuned share, with the Pareto front.

    Returns:
        The figure; ``None`` where nothing was measured.
    """
    values = cost_values(rows)
    kinds = [kind for kind in ("s/epoch", "tuned %") if sum(value["kind"] == kind for value in values) > 1]
    if not kinds:
        return None
    shown = [value for value in values if value["kind"] == kinds[0]]
    front = [value["method"] for value in sorted(shown, key=lambda value: value["cost"]) if value["front"] == "yes"]
    measure = measure_in(shown)
    places = [f"{value['method']} {value[measure]:.1f} % at {value['text']}" for value in shown]
    description = (
        f"Scatter plot of test {measure} against {kinds[0]}. {'; '.join(places)}."
        f" On the Pareto front: {', '.join(front)}."
    )
    caption = f"Test {measure} against {kinds[0]} (log scale); the line joins what nothing beats in both."
    return Figure(caption, description, cost_spec(shown, styles, kinds[0]))


def cost_spec(values: Values, styles: Mapping[str, Style], title: str) -> dict[str, Any]:
    """Draw a point per row and the front as a line in steps."""
    alt, measure = altair(), measure_in(values)
    colour, shape = method_channels(alt, values, styles)
    axis = alt.Axis(format="~s" if title in _IN_BYTES else "~g", labelOverlap=True, grid=False)
    x = alt.X("cost", type="quantitative", title=title, scale=alt.Scale(type="log", nice=False, padding=12), axis=axis)
    y = alt.Y(measure, type="quantitative", title=f"test {measure} %", scale=accuracy_scale(alt, values))
    tooltip = [
        alt.Tooltip("method", type="nominal"),
        alt.Tooltip(measure, type="quantitative", format=".2f", title=f"{measure} %"),
        alt.Tooltip("text", type="nominal", title="cost"),
        alt.Tooltip("front", type="nominal", title="on the Pareto front"),
        alt.Tooltip("group", type="nominal", title="on"),
    ]
    base = alt.Chart(alt.Data(values=[])).encode(x=x, y=y)
    line = base.transform_filter("datum.front == 'yes'").mark_line(
        interpolate="step-after", strokeDash=[5, 4], color="#888888"
    )
    points = base.mark_point(filled=True, size=90, opacity=0.95).encode(color=colour, shape=shape, tooltip=tooltip)
    return finish(alt.layer(line, points), values, _WIDTH)


def _curve_values(rows: Sequence[Row]) -> Values:
    """Average the training loss and accuracy of each epoch over seeds; a loss of 0 has no place on a log scale."""
    values: Values = []
    for row in rows:
        curves = [run.learning_curve for run in row.runs if run.learning_curve]
        losses = _epoch_means([curve.get("train_loss", []) for curve in curves], 5)
        # Of images with several labels there is none.
        accuracies = _epoch_means([curve.get("train_accuracy", []) for curve in curves], 2)
        for epoch, loss in enumerate(losses):
            value = {"method": row.label, "epoch": epoch + 1, "loss": loss, "group": row.group.label}
            values.append({**value, "accuracy": accuracies[epoch]} if accuracies else value)
    return [value for value in values if value["loss"] > 0]


def _epoch_means(curves: Sequence[Sequence[float]], digits: int) -> list[float]:
    return [round(sum(parts) / len(parts), digits) for parts in zip(*curves, strict=False)]


def learning_curves(rows: Sequence[Row], styles: Mapping[str, Style]) -> Figure | None:
    """Draw the training loss epoch by epoch, a line per method, each the mean over seeds.

    Returns:
        The figure; ``None`` where no curve was recorded.
    """
    values = _curve_values(rows)
    if not values:
        return None
    alt = altair()
    colour, shape = method_channels(alt, values, styles)
    tooltip = [
        alt.Tooltip("method", type="nominal"),
        alt.Tooltip("epoch", type="quantitative"),
        alt.Tooltip("loss", type="quantitative", format=".3~g", title="training loss"),
        alt.Tooltip("accuracy", type="quantitative", format=".1f", title="training accuracy %"),
    ]
    base = alt.Chart(alt.Data(values=[])).encode(
        x=alt.X("epoch", type="quantitative", title="epoch", axis=alt.Axis(grid=False, tickMinStep=1)),
        y=alt.Y("loss", title="training loss", **log_axis(alt, "loss", "y")),
        color=colour,
    )
    dots = base.mark_point(filled=True, size=35, opacity=1).encode(shape=shape, tooltip=tooltip)
    last = {value["method"]: value for value in values}
    ends = [f"{method} ends at {significant(value['loss'])}" for method, value in last.items()]
    description = f"Line chart of training loss by epoch. {'; '.join(ends)}."
    caption = "Training loss by epoch, mean over seeds, as the batches went by (log scale)."
    return Figure(caption, description, finish(alt.layer(base.mark_line(), dots), values, _WIDTH))


def confusion_values(rows: Sequence[Row]) -> Values:
    """Sum the confusion matrices over seeds: one entry per row, sparse, as the results hold them."""
    return [
        {
            "group": row.group.label,
            "method": row.label,
            "classes": next(run.class_names for run in row.runs if run.confusion),
            "rows": [" ".join(f"{label}:{count}" for label, count in enumerate(line) if count) for line in matrix],
        }
        for row in rows
        if (matrix := summed_confusion(row.runs))
    ]


def confusion_spec() -> dict[str, Any]:
    """Draw a confusion matrix; the values come later, for one matrix at a time."""
    alt = altair()
    axis = alt.Axis(labelOverlap=True, labelLimit=90)
    chart = alt.Chart(alt.Data(values=[])).mark_rect()
    encoded = chart.encode(
        x=alt.X("predicted", type="nominal", sort=None, title="predicted", axis=axis),
        y=alt.Y("true", type="nominal", sort=None, title="true class", axis=axis),
        color=alt.Color(
            "share",
            type="quantitative",
            scale=alt.Scale(scheme="cividis", domain=[0, 100]),
            legend=alt.Legend(title="% of the class", orient="top"),
        ),
        tooltip=[
            alt.Tooltip("true", type="nominal", title="true class"),
            alt.Tooltip("predicted", type="nominal"),
            alt.Tooltip("count", type="quantitative"),
            alt.Tooltip("share", type="quantitative", format=".1f", title="% of the class"),
        ],
    )
    return finish(encoded, [], _WIDTH)
