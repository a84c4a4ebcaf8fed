"""The pictures of a benchmark: NC1, training size, cost, learning curves and confusion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nc_finetune.report._tables.analysis import pareto_front, summed_confusion
from nc_finetune.report._tables.groups import finite, grouped
from nc_finetune.report._tables.summary import Row, by_group
from nc_finetune.report._tables.tables import COSTS, cost_text, significant
from nc_finetune.report.figures import (
    Figure,
    Points,
    Style,
    accuracy_axis,
    accuracy_tip,
    altair,
    finish,
    lines_with_dots,
    log_axis,
    measure_in,
    method_channels,
)
from nc_finetune.results.result import Result

_WIDTH, _WIDTH_PER_LAYER, _FACET_WIDTH = 520, 24, 240
_IN_BYTES = ("peak memory", "delta size")
Values = list[dict[str, Any]]


def network_order(runs: Sequence[Result]) -> list[str]:
    """Collect the layers of runs that share a backbone.

    Args:
        runs: Runs, each with its layers from the stem to the penultimate feature.

    Returns:
        Every layer once, in the order of the run that measured most of them.
    """
    longest_first = sorted(runs, key=lambda run: -len(run.nc1_layers))
    return list(dict.fromkeys(layer for run in longest_first for layer in run.nc1_layers))


def _drawable(values: Iterable[float | None]) -> list[float]:
    """Keep what a log scale can hold."""
    return [value for value in finite(values) if value > 0]


def _layer_points(rows: Sequence[Row]) -> Values:
    """Average NC1 over seeds for each group, method and layer."""
    points = []
    for row in rows:
        for layer in network_order(row.runs):
            values = _drawable(run.nc1_layers.get(layer) for run in row.runs)
            if values:
                nc1, about = sum(values) / len(values), {"seeds": len(values), "group": row.group.label}
                points.append({"method": row.label, "layer": layer, "nc1": nc1, **about})
    return points


def _by_method(point: Mapping[str, Any]) -> str:
    return str(point["method"])


def _layer_description(points: Points) -> str:
    """Say where the line of each method begins and ends."""
    ends = [
        f"{label} from {significant(line[0]['nc1'])} at {line[0]['layer']} "
        f"to {significant(line[-1]['nc1'])} at {line[-1]['layer']}"
        for label, line in grouped(points, _by_method).items()
    ]
    return f"Line chart of NC1 by layer. {'; '.join(ends)}."


def layerwise_nc1(rows: Sequence[Row], styles: Mapping[str, Style]) -> Figure | None:
    """Draw NC1 against depth, one line per method, each the mean over seeds.

    Returns:
        The figure; ``None`` if no run has a positive NC1 at any layer.
    """
    points = _layer_points(rows)
    if not points:
        return None
    measured = {point["layer"] for point in points}
    layers = [layer for layer in network_order([run for row in rows for run in row.runs]) if layer in measured]
    alt = altair()
    axis = alt.Axis(labelAngle=-90, labelOverlap="parity", labelLimit=120, grid=False)
    x = alt.X("layer:O", sort=layers, title="layer, from input to output", axis=axis)
    y = alt.Y("nc1:Q", title="NC1", **log_axis(alt, "nc1", "y"))
    tooltip = ["method:N", "layer:N", alt.Tooltip("nc1:Q", format=".3~g", title="mean NC1"), "seeds:Q"]
    chart = lines_with_dots(alt, points, styles, 45, tooltip, x=x, y=y)
    caption = "NC1 layer by layer, mean over seeds (log scale; lower is more collapsed)."
    width = max(_WIDTH, _WIDTH_PER_LAYER * len(layers))
    return Figure(caption, _layer_description(points), finish(chart, points, width))


def _run_points(rows: Sequence[Row]) -> Values:
    """Take every run that has both an accuracy and an NC1 to be drawn."""
    return [
        {
            "method": row.label,
            run.measure: run.score,
            "nc1": run.nc1,
            "seed": run.seed,
            "group": row.group.label,
        }
        for row in rows
        for run in row.runs
        if finite([run.score]) and _drawable([run.nc1])
    ]


def _run_description(points: Points) -> str:
    """Say where the points of each method lie."""
    measure, clouds = measure_in(points), grouped(points, _by_method)
    places = [f"{label}: {_span(cloud, measure)} % at NC1 {_span(cloud, 'nc1')}" for label, cloud in clouds.items()]
    return f"Scatter plot of test {measure} against NC1, {len(points)} runs. {'; '.join(places)}."


def _span(points: Points, name: str) -> str:
    values = [point[name] for point in points]
    low, high = significant(min(values)), significant(max(values))
    return low if low == high else f"{low} to {high}"


def accuracy_against_nc1(rows: Sequence[Row], styles: Mapping[str, Style]) -> Figure | None:
    """Draw test accuracy against NC1 of what the classifier sees, one point per run.

    Returns:
        The figure; ``None`` if no run has both an accuracy and a positive NC1.
    """
    points = _run_points(rows)
    if not points:
        return None
    alt, measure = altair(), measure_in(points)
    colour, shape = method_channels(alt, points, styles)
    chart = alt.Chart(alt.Data(values=[])).mark_point(filled=True, size=80, opacity=0.85)
    told = alt.Tooltip("nc1:Q", format=".3~g", title="NC1"), "seed:Q", alt.Tooltip("group:N", title="runs on")
    encoded = chart.encode(
        x=alt.X("nc1:Q", title="NC1", **log_axis(alt, "nc1", "x")),
        y=accuracy_axis(alt, measure),
        color=colour,
        shape=shape,
        tooltip=["method:N", accuracy_tip(alt, measure), *told],
    )
    caption = f"Test {measure} against NC1 of what the classifier sees, one point a run (NC1 on a log scale)."
    return Figure(caption, _run_description(points), finish(encoded, points, _WIDTH))


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
    x = alt.X("images:Q", title="training images", scale=scale, axis=axis)
    base = alt.Chart(alt.Data(values=[])).encode(x=x, color=colour)
    accuracy = alt.Y(f"{measure}:Q", title=f"test {measure} %", scale=alt.Scale(zero=False))
    told = accuracy_tip(alt, measure), "seeds:Q", alt.Tooltip("series:N", title="on")
    tooltip = ["method:N", alt.Tooltip("images:Q", title="training images"), *told]
    low = alt.Y("low:Q", title=f"test {measure} %")
    spread = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(y=low, y2=alt.Y2("high"))
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
        facet=alt.Facet("series:N", title=None, header=alt.Header(labelLimit=_FACET_WIDTH)),
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
    """Draw test accuracy against the time of a whole run, or what is known else, with the Pareto front.

    Returns:
        The figure; ``None`` where nothing was measured.
    """
    values = cost_values(rows)
    kinds = [
        kind for kind in ("processor s", "s/epoch", "tuned %") if sum(value["kind"] == kind for value in values) > 1
    ]
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
    x = alt.X("cost:Q", title=title, scale=alt.Scale(type="log", nice=False, padding=12), axis=axis)
    told = {"text:N": "cost", "front:N": "on the Pareto front", "group:N": "on"}
    tips = [alt.Tooltip(name, title=words) for name, words in told.items()]
    tooltip = ["method:N", accuracy_tip(alt, measure), *tips]
    base = alt.Chart(alt.Data(values=[])).encode(x=x, y=accuracy_axis(alt, measure))
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
    loss = alt.Tooltip("loss:Q", format=".3~g", title="training loss")
    accuracy = alt.Tooltip("accuracy:Q", format=".1f", title="training accuracy %")
    whole = "datum.value % 1 ? '' : datum.label"  # of two epochs Vega would have one and a half
    x = alt.X("epoch:Q", title="epoch", axis=alt.Axis(grid=False, tickMinStep=1, format="~g", labelExpr=whole))
    y = alt.Y("loss:Q", title="training loss", **log_axis(alt, "loss", "y"))
    chart = lines_with_dots(alt, values, styles, 35, ["method:N", "epoch:Q", loss, accuracy], x=x, y=y)
    last = {value["method"]: value for value in values}
    ends = [f"{method} ends at {significant(value['loss'])}" for method, value in last.items()]
    description = f"Line chart of training loss by epoch. {'; '.join(ends)}."
    caption = "Training loss by epoch, mean over seeds, as the batches went by (log scale)."
    return Figure(caption, description, finish(chart, values, _WIDTH))


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
    scale, legend = alt.Scale(scheme="cividis", domain=[0, 100]), alt.Legend(title="% of the class", orient="top")
    share = alt.Tooltip("share:Q", format=".1f", title="% of the class")
    encoded = (
        alt.Chart(alt.Data(values=[]))
        .mark_rect()
        .encode(
            x=alt.X("predicted:N", sort=None, title="predicted", axis=axis),
            y=alt.Y("true:N", sort=None, title="true class", axis=axis),
            color=alt.Color("share:Q", scale=scale, legend=legend),
            tooltip=[alt.Tooltip("true:N", title="true class"), "predicted:N", "count:Q", share],
        )
    )
    return finish(encoded, [], _WIDTH)
