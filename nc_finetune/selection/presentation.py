"""Profiles of blocks and scores of backbones as tables, CSV and a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from nc_finetune._common.csv_text import csv_text
from nc_finetune._common.heat_map import draw_heat_map, heat_map_size
from nc_finetune._common.terminal import as_text, name_table
from nc_finetune.errors import missing_extra
from nc_finetune.functional import SeparationLaw
from nc_finetune.selection.backbone_scores import FIELDS, MEASURES, BackboneScores
from nc_finetune.selection.key_layer import KeyLayerChoice
from nc_finetune.selection.profile import BlockCost, BlockMeasures

_SHOWN = 3  # classes, and pairs, in words
_COLOURS = ("#0072B2", "#D55E00", "#009E73")  # Okabe & Ito, Color Universal Design (2008)


@dataclass(frozen=True)
class Profile:
    """Everything that is known of the blocks of a backbone on some data.

    Attributes:
        backbone: Its name.
        measures: By layer, in order.
        costs: By block, in order.
        law: The separation law over the layers.
        readout: Leave-one-out accuracy on the training images of a :class:`~nc_finetune.methods.LayerReadout`, which
            tunes nothing, by groups of layers.
        choice: The block that trials chose; ``None`` where there were none.
        other_rules: What simple rules would choose.
    """

    backbone: str
    measures: list[BlockMeasures]
    costs: list[BlockCost]
    law: SeparationLaw
    readout: dict[str, float] = field(default_factory=dict)
    choice: KeyLayerChoice | None = None
    other_rules: dict[str, str] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """Return one mapping a layer: measures, costs where it can be tuned, and accuracy in the last trial."""
        costs = {cost.block: asdict(cost) for cost in self.costs}
        tried = {name: found.accuracy for rung in self._rungs() for name, found in rung.measured.items()}
        names = ("tuned_percent", "training_flops", "cached_flops", "cache_bytes")
        return [
            {
                **{name: value for name, value in asdict(found).items() if name != "classes"},
                **{name: costs.get(found.block, {}).get(name) for name in names},
                "trial_accuracy": tried.get(found.block),
            }
            for found in self.measures
        ]

    def class_rows(self) -> list[dict[str, Any]]:
        """Return one mapping for each class, and closest pair, of each layer; none without ``by_class``."""
        return [
            {"block": found.block, "measure": measure, "of": name, "value": value}
            for found in self.measures
            if found.classes is not None
            for measure, values in (("class_spread", found.classes.spread), ("pair_cdnv", found.classes.closest))
            for name, value in values.items()
        ]

    def _rungs(self) -> list[Any]:
        return [] if self.choice is None else self.choice.rungs

    def _of_classes(self) -> list[str]:
        """Say which classes collapse least in the last layer, and which are closest there."""
        last = self.measures[-1]
        if last.classes is None:
            return []
        known = [one for one in last.classes.spread.items() if not math.isnan(one[1])]
        spreads = sorted(known, key=lambda one: -one[1])[:_SHOWN]
        least = ", ".join(f"{name} {value:.3g}" for name, value in spreads)
        pairs = list(last.classes.closest.items())[:_SHOWN]
        close = ", ".join(f"{name.replace('|', ' and ')} {value:.3g}" for name, value in pairs)
        return [
            f"Collapsed least in {last.block} (spread / squared distance to the nearest class): {least}.",
            f"Closest there (CDNV): {close}.",
        ]

    @property
    def recommendation(self) -> str:
        """Which block to tune, and why."""
        slope, straight = self.law.slope.item(), self.law.r_squared.item()
        rules = "; ".join(f"{rule}: {block}" for rule, block in self.other_rules.items())
        lines = [f"Separation law: log(tr S_W / tr S_B) changes by {slope:.2f} a layer, R2 {straight:.2f}."]
        if self.readout:
            shares = ", ".join(f"{name} {100 * share:.1f}" for name, share in self.readout.items())
            lines.append(
                f"Without tuning, a readout recognises of training images, one left out each time: {shares} %."
            )
        if rules:
            lines.append(f"Simple rules would choose: {rules}.")
        lines += self._of_classes()
        if self.choice is None:
            lines.append("No trials were run, and pre-trained measures alone can point at the worst block.")
        else:
            lines.append(f"Recommended key layer: {self.choice.block}. {self.choice.reason}.")
        return "\n".join(lines)


def profile_classes_csv(profile: Profile) -> str:
    """Write what is known of single classes as CSV, a line for each class, and closest pair, of each layer."""
    rows = profile.class_rows()
    return csv_text([("block", "measure", "of", "value"), *(row.values() for row in rows)])


def profile_classes_png(profile: Profile) -> bytes:
    """Draw the spread of each class in each layer.

    Args:
        profile: One that was measured by class.

    Returns:
        The bytes of a PNG file.

    Raises:
        ImportError: If matplotlib is not installed; the message names the extra.
    """
    table = {found.block: found.classes.spread for found in profile.measures if found.classes is not None}
    figure = _new_figure(*heat_map_size(table))
    draw_heat_map(figure, table, "spread / squared distance to the nearest class")
    return _png(figure)


def _new_figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "plot", "the picture of a profile") from error
    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in ("ncc_accuracy", "trial_accuracy", "probe_accuracy", "readout_accuracy"):
        return f"{100 * value:.1f}"
    if name in ("training_flops", "cached_flops"):
        return f"{value / 1e6:.0f}"
    if name == "cache_bytes":
        return f"{value / 2**20:.1f}"
    if isinstance(value, float):
        return f"{value:.2f}" if name == "tuned_percent" else f"{value:.3g}"
    return str(value)


_PROFILE_HEADINGS = {
    "block": "layer",
    "nc1": "NC1",
    "trace_ratio": "trace ratio",
    "ncc_accuracy": "NCC %",
    "tuned_percent": "tuned %",
    "training_flops": "MFLOPs",
    "cached_flops": "cached",
    "cache_bytes": "cache MiB",
    "trial_accuracy": "trial %",
}


def profile_table(profile: Profile) -> Table:
    """Show a profile in the terminal; the recommended block is bold."""
    first, *others = _PROFILE_HEADINGS.values()
    table = name_table([first], others)
    for row in profile.rows():
        chosen = profile.choice is not None and row["block"] == profile.choice.block
        table.add_row(*as_text([_text(name, row[name]) for name in _PROFILE_HEADINGS], "bold" if chosen else ""))
    return table


def profile_csv(profile: Profile) -> str:
    """Write a profile as CSV, a line a layer."""
    rows = profile.rows()
    return csv_text([rows[0], *(row.values() for row in rows)])


def profile_png(profile: Profile) -> bytes:
    """Draw a profile: NC1 and trace ratio, accuracies, and cost, over the layers.

    Args:
        profile: What to draw.

    Returns:
        The bytes of a PNG file.

    Raises:
        ImportError: If matplotlib is not installed; the message names the extra.
    """
    rows = profile.rows()
    figure = _new_figure(max(6.0, 1.5 + 0.4 * len(rows)), 8.5)
    upper, middle, lower = figure.subplots(3, 1, sharex=True)
    _draw(upper, rows, {"nc1": "NC1", "trace_ratio": "tr S_W / tr S_B"})
    upper.set_yscale("log")
    _draw(middle, rows, {"ncc_accuracy": "nearest class centre", "trial_accuracy": "after the trial"}, factor=100)
    middle.set_ylabel("validation accuracy %")
    _draw(lower, rows, {"training_flops": "training step", "cached_flops": "with cached prefix"}, factor=1e-6)
    lower.set_ylabel("MFLOPs an image")
    lower.set_xticks(range(len(rows)), [row["block"] for row in rows], rotation=60, ha="right", rotation_mode="anchor")
    if profile.choice is not None:
        place = [row["block"] for row in rows].index(profile.choice.block)
        for axes in (upper, middle, lower):
            axes.axvline(place, color="#999999", linestyle="--", zorder=0)
        upper.set_title(f"{profile.backbone}: recommended {profile.choice.block}")
    return _png(figure)


def _draw(axes: Any, rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], factor: float = 1.0) -> None:
    for (name, label), colour, marker in zip(names.items(), _COLOURS, "os^", strict=False):
        points = [(place, factor * row[name]) for place, row in enumerate(rows) if row[name] is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], marker=marker, color=colour, label=label)
    axes.legend()
    axes.grid(alpha=0.3)


_RANK_HEADINGS = {
    "name": "backbone",
    "weights": "weights",
    "num_features": "D",
    "nc1": "NC1",
    "vci": "VCI",
    "cdnv": "CDNV",
    "h_score": "H-score",
    "logme": "LogME",
    "ncc_accuracy": "NCC %",
    "probe_accuracy": "probe %",
    "readout_accuracy": "readout %",
    "seconds": "s",
}


def rank_table(scores: Sequence[BackboneScores]) -> Table:
    """Show the backbones that have scores in the terminal, in their order; the best of each measure is bold."""
    backbone, tag, *numbers = _RANK_HEADINGS.values()
    table = name_table([backbone, tag], numbers)
    known = [found for found in scores if found.error is None]
    best = {
        name: max((sign * getattr(found, name) for found in known), default=None) for name, sign in MEASURES.items()
    }
    for found in known:
        cells = []
        for name in _RANK_HEADINGS:
            value = getattr(found, name)
            is_best = name in MEASURES and MEASURES[name] * value == best[name]
            cells += as_text([_text(name, value)], "bold" if is_best else "")
        table.add_row(*cells)
    return table


def rank_csv(scores: Sequence[BackboneScores]) -> str:
    """Write scores of backbones as CSV, in their order."""
    return csv_text([FIELDS, *([getattr(found, name) for name in FIELDS] for found in scores)])
