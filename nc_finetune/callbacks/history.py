"""What was measured, as a table that grows: one row for each moment."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence

Row = dict[str, float]
_MOMENT = ("epoch", "step")
_LOADER = re.compile(r"/dataloader_idx_\d+$")


def add_row(history: list[Row], epoch: int, step: int, values: Mapping[str, float]) -> None:
    """Add values to the row of their moment, which is the last one or a new one.

    Example:
        >>> history = []
        >>> add_row(history, 0, 5, {"nc1/stem": 2.0})
        >>> add_row(history, 0, 5, {"val/nc1/stem": 3.0})
        >>> history
        [{'epoch': 0, 'step': 5, 'nc1/stem': 2.0, 'val/nc1/stem': 3.0}]
    """
    if not history or (history[-1]["epoch"], history[-1]["step"]) != (epoch, step):
        history.append({"epoch": epoch, "step": step})
    history[-1].update(values)


def history_csv(history: Sequence[Row]) -> str:
    """Write the table as CSV, with every key that any row has as a column.

    Example:
        >>> print(history_csv([{"epoch": 0, "step": 5, "nc1/stem": 2.0}]).strip())
        epoch,step,nc1/stem
        0,5,2.0
    """
    columns = list(dict.fromkeys((*_MOMENT, *(key for row in history for key in row))))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def layer_groups(history: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Sort the keys of a table into groups of layers: what one figure shows.

    Returns:
        By name of the group, such as ``nc1`` or ``val/nc1``, the key of every layer by its name.

    Example:
        >>> layer_groups([{"epoch": 0, "step": 5, "nc1/stem": 2.0, "nc1/stem/dataloader_idx_1": 3.0}])
        {'nc1': {'stem': 'nc1/stem'}, 'nc1/dataloader_idx_1': {'stem': 'nc1/stem/dataloader_idx_1'}}
    """
    groups: dict[str, dict[str, str]] = {}
    for key in dict.fromkeys(key for row in history for key in row if key not in _MOMENT):
        loader = _LOADER.search(key)
        suffix = loader.group() if loader else ""
        group, _, layer = key.removesuffix(suffix).rpartition("/")
        groups.setdefault(group + suffix, {})[layer] = key
    return groups
