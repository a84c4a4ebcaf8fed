"""What was measured, as a table that grows: one row for each moment."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence

from nc_finetune._common.csv_text import csv_text

Row = dict[str, float]
_MOMENT = ("epoch", "step")
LOADER_SUFFIX = re.compile(r"/dataloader_idx_\d+$")
CLASS_SPREAD, PAIR_CDNV, PAIR_OVERLAP = "class_spread", "pair_cdnv", "pair_overlap"
_BY_CLASS = re.compile(
    rf"(?P<split>.*?)(?P<measure>{CLASS_SPREAD}|{PAIR_CDNV}|{PAIR_OVERLAP})/(?P<of>.*)/(?P<layer>[^/]*?)"
    r"(?P<loader>/dataloader_idx_\d+)?"
)


def add_row(history: list[Row], epoch: int, step: int, values: Mapping[str, float], first: int = 0) -> None:
    """Add values to the row of their moment, which is the last one or a new one.

    Args:
        history: The table.
        epoch: From 0.
        step: Optimizer steps so far.
        values: By key.
        first: Number of rows of earlier runs, which stay as they are.

    Example:
        >>> history = []
        >>> add_row(history, 0, 5, {"nc1/stem": 2.0})
        >>> add_row(history, 0, 5, {"val/nc1/stem": 3.0})
        >>> history
        [{'epoch': 0, 'step': 5, 'nc1/stem': 2.0, 'val/nc1/stem': 3.0}]
    """
    if len(history) <= first or _moment(history[-1]) != (epoch, step):
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
    rows = [{**row, **{key: int(row[key]) for key in _MOMENT}} for row in history]
    return csv_text([columns, *(map(row.get, columns) for row in rows)])


def read_history(text: str) -> list[Row]:
    r"""Read what :func:`history_csv` wrote.

    Raises:
        ValueError: If it is another table.

    Example:
        >>> read_history("epoch,step,nc1/stem,nc1/fc\n0,5,2.0,\n")
        [{'epoch': 0.0, 'step': 5.0, 'nc1/stem': 2.0}]
    """
    reader = csv.DictReader(io.StringIO(text))
    if not set(_MOMENT) <= set(reader.fieldnames or ()):
        raise ValueError("it is no table of measurements: it has no columns epoch and step; move it away")
    return [{key: float(value) for key, value in row.items() if value} for row in reader]


def join_histories(found: Sequence[Row], history: Sequence[Row], resumed: bool) -> list[Row]:
    """Join the rows of a file with those of this run, so that none is lost and none comes twice.

    Args:
        found: The rows that were in the file when the run began.
        history: The rows of the run, and of what it goes on from.
        resumed: Whether the run goes on from a checkpoint of the run in the file: what it measures anew replaces
            what the other had measured after that checkpoint.

    Example:
        >>> first, again = {"epoch": 0, "step": 5, "nc1": 2.0}, {"epoch": 0, "step": 5, "nc1": 3.0}
        >>> len(join_histories([first], [again], resumed=False)), len(join_histories([first], [first], resumed=False))
        (2, 1)
        >>> join_histories([first], [again], resumed=True) == [again]
        True
    """
    if resumed:
        measured = {_moment(row) for row in history}
        return [*history, *(row for row in found if _moment(row) not in measured)]
    there = {_content(row) for row in found}
    return [*found, *(row for row in history if _content(row) not in there)]


def _moment(row: Row) -> tuple[float, float]:
    return row["epoch"], row["step"]


def _content(row: Row) -> frozenset[tuple[str, str]]:
    return frozenset((key, str(float(value))) for key, value in row.items())  # as text, nan is itself


def layer_groups(history: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Sort the keys of a table into groups of layers: what one figure shows.

    Returns:
        By name of the group, such as ``nc1`` or ``val/nc1``, the key of every layer by its name.

    Example:
        >>> layer_groups([{"epoch": 0, "step": 5, "nc1/stem": 2.0, "nc1/stem/dataloader_idx_1": 3.0}])
        {'nc1': {'stem': 'nc1/stem'}, 'nc1/dataloader_idx_1': {'stem': 'nc1/stem/dataloader_idx_1'}}
    """
    groups: dict[str, dict[str, str]] = {}
    for key in dict.fromkeys(key for row in history for key in row if key not in _MOMENT and not is_by_class(key)):
        loader = LOADER_SUFFIX.search(key)
        suffix = loader.group() if loader else ""
        group, _, layer = key.removesuffix(suffix).rpartition("/")
        groups.setdefault(group + suffix, {})[layer] = key
    return groups


def is_by_class(key: str) -> bool:
    """Tell whether a key is of a class or of a pair of classes: of such there are many.

    Example:
        >>> is_by_class("nc1/stem"), is_by_class("val/class_spread/a/b cat/stem")
        (False, True)
    """
    return _BY_CLASS.fullmatch(key) is not None


def class_tables(history: Sequence[Row], measure: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return what was measured last by class, or by pair of classes.

    Args:
        history: The table.
        measure: ``"class_spread"``, ``"pair_cdnv"`` or ``"pair_overlap"``.

    Returns:
        By split and loader as they stand in front of and behind keys, by layer and class; in the order of the keys.

    Example:
        >>> class_tables([{"epoch": 0, "step": 5, "class_spread/cat/stem": 2.0, "nc1/stem": 3.0}], "class_spread")
        {'': {'stem': {'cat': 2.0}}}
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in reversed(history):
        tables: dict[str, dict[str, dict[str, float]]] = {}
        for key, value in row.items():
            parts = _BY_CLASS.fullmatch(key)
            if parts is not None and parts["measure"] == measure:
                split = f"{parts['split']}{(parts['loader'] or '').removeprefix('/')}"
                tables.setdefault(split, {}).setdefault(parts["layer"], {})[parts["of"]] = value
        for split, table in tables.items():
            found.setdefault(split, table)
    return found
