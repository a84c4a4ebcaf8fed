"""A report as one page that opens from a disk: its tables as they are, its pictures drawn from the data in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nc_finetune.report._tables.groups import grouped, setting_names
from nc_finetune.report._tables.score import ACCURACY
from nc_finetune.report._tables.summary import Row, by_group, row_labels
from nc_finetune.report._tables.tables import COSTS, long_table
from nc_finetune.report.charts import (
    accuracy_against_nc1,
    accuracy_against_size,
    confusion_spec,
    confusion_values,
    cost_spec,
    cost_values,
    layerwise_nc1,
    learning_curves,
    size_values,
)
from nc_finetune.report.content import Report
from nc_finetune.report.figures import Figure, Style, palette, vegalite_version
from nc_finetune.report.html import page_part, render

# Vega's symbols as paths in a square of 16, for the legend in the page.
_SYMBOLS = {
    "circle": "M2 8a6 6 0 1 0 12 0a6 6 0 1 0 -12 0z",
    "square": "M3 3h10v10h-10z",
    "triangle-up": "M8 2l6.5 11.5h-13z",
    "diamond": "M8 1l5.5 7l-5.5 7l-5.5 -7z",
    "cross": "M6 2h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "triangle-down": "M8 14l6.5 -11.5h-13z",
    "triangle-right": "M14 8l-11.5 6.5v-13z",
}


def _chart(
    title: str, about: str, spec: Mapping[str, Any], values: Sequence[Mapping[str, Any]], **more: Any
) -> dict[str, Any]:
    """Describe a picture: a specification without data, and all the data that it can show."""
    bare = {**spec, "data": {**spec["data"], "values": []}}
    return {"title": title, "about": about, "spec": bare, "values": list(values), **more}


def _from_figure(title: str, figure: Figure, **more: Any) -> dict[str, Any]:
    return _chart(title, figure.caption, figure.spec, figure.spec["data"]["values"], **more)


def _charts(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Collect the pictures that there is something to draw for."""
    styles = palette(row_labels(rows))
    measure = rows[0].group.measure if rows else ACCURACY
    charts: dict[str, dict[str, Any]] = {}
    if (nc1 := accuracy_against_nc1(rows, styles)) is not None:
        charts["nc1"] = _from_figure(f"{measure.capitalize()} against NC1", nc1, y=measure)
    if (layers := layerwise_nc1(rows, styles)) is not None:
        charts["layers"] = _from_figure("NC1 layer by layer", layers, y="nc1", one="group")
    if (sizes := _size_figure(rows, styles)) is not None:
        title = f"{measure.capitalize()} against training size"
        charts["sizes"] = _chart(title, sizes.caption, sizes.spec, size_values(rows), y=measure, one="series")
    if costs := cost_values(rows):
        about = f"The line joins what nothing beats in {measure} and this cost (log scale)."
        kinds = [kind for kind in COSTS if any(value["kind"] == kind for value in costs)]
        spec = cost_spec(costs, styles, kinds[0])
        title = f"{measure.capitalize()} against cost"
        charts["cost"] = _chart(title, about, spec, costs, y=measure, one="group", kinds=kinds)
    if (curves := learning_curves(rows, styles)) is not None:
        charts["curves"] = _from_figure("Learning curves", curves, y="loss", one="group")
    if confusions := confusion_values(rows):
        about = "Test images of each true class by what they were taken for, all seeds together."
        charts["confusion"] = _chart("Confusion matrix", about, confusion_spec(), confusions, y="share", one="group")
    return charts


def _size_figure(rows: Sequence[Row], styles: Mapping[str, Style]) -> Figure | None:
    """Draw the curve of one data set and backbone; a panel for each would be too small on a phone."""
    by_series = grouped(rows, lambda row: row.group.series)
    figures = (accuracy_against_size(members, styles) for members in by_series.values())
    return next((figure for figure in figures if figure is not None), None)


def _groups(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Say of each group what the filters go by, and its name."""
    names = setting_names(by_group(rows))
    return {
        group.label: {
            "dataset": group.dataset,
            "backbone": group.network,
            "size": group.size,
            "name": names[group],
            "series": group.series,
        }
        for group in by_group(rows)
    }


def render_page(report: Report) -> str:
    """Write a report as HTML; the page holds the drawing library and its data, so that it opens without a network.

    Returns:
        The page; whatever HTML or JavaScript would act upon is escaped.

    Raises:
        ImportError: If a package of the extra ``report`` is not installed.
    """
    import vl_convert

    rows = report.rows
    styles = palette(row_labels(rows))
    data = {
        "groups": _groups(rows),
        "styles": {label: {"colour": style.colour, "shape": style.shape} for label, style in styles.items()},
        "charts": _charts(rows),
    }
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vegalite_version())
    return render(
        "report.html.jinja",
        report=report,
        data=data,
        everything=long_table(rows),
        keys=list(_groups(rows)),
        symbols=_SYMBOLS,
        groups=[row.group for row in rows],
        methods=[row.label for row in rows],
        script=page_part("report.js"),
        # A script ends at the first "</script", even inside a string of JavaScript.
        bundle=bundle.replace("</script", r"<\/script"),
    )
