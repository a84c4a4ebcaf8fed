"""The slides' picture: accuracy against NC1 before any fine-tuning, by task and method."""

from __future__ import annotations

import math

from benchmarks.pretraining.tables import PICTURE_CAPTION, Measured
from nc_finetune.report._tables.variants import method_label
from nc_finetune.report.figures import Figure as Picture
from nc_finetune.report.figures import altair, to_png

_SIDE = 150  # of a panel, in pixels


def draw(measured: Measured) -> bytes:
    """Draw a panel for each task and method, a point for each network, and return a PNG file."""
    alt = altair()
    points = [
        {"network": network, "task": task, "method": method_label(method), "accuracy": accuracy, "NC1": nc1}
        for (network, task, method), accuracy in measured.accuracies.items()
        if math.isfinite(nc1 := -measured.scores.get((network, task, "NC1"), math.nan)) and task != measured.source
    ]
    networks, methods = [network.name for network in measured.networks], [method_label(m) for m in measured.methods]
    free = alt.Scale(zero=False)
    panels = (
        alt.Chart(alt.Data(values=points))
        .mark_point(filled=True, size=60, opacity=1)
        .encode(
            x=alt.X("NC1:Q", scale=alt.Scale(type="log", nice=False, padding=8), title="NC1 of the frozen feature"),
            y=alt.Y("accuracy:Q", scale=free, title="test accuracy %"),
            color=alt.Color("network:N", sort=networks, scale=alt.Scale(scheme="category20"), title=None),
        )
        .properties(width=_SIDE, height=_SIDE)
        .facet(
            row=alt.Row("method:N", sort=methods, title=None),
            column=alt.Column("task:N", sort=measured.tasks, title=None),
        )
        .resolve_scale(x="independent", y="independent")
    )
    return to_png(Picture(PICTURE_CAPTION, PICTURE_CAPTION, panels.to_dict(validate=False)))
