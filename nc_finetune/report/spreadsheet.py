"""Every run as a line of CSV."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from nc_finetune._common.csv_text import csv_text
from nc_finetune.report._tables.score import balanced_accuracy
from nc_finetune.results.identity import configured
from nc_finetune.results.json_numbers import to_json
from nc_finetune.results.result import Result

# Long, and drawn in the page: they stay in the JSON files. Or in columns of their own.
_LEFT_OUT = (
    *("learning_curve", "class_names", "confusion", "class_spread"),
    *("provenance", "schema_version", "collapse", "config"),
)
_HASHES = ("git_commit", "data_fingerprint", "weights_hash")


def _cell(value: Any) -> Any:
    """Write what holds several values as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value


def _settings(run: Result) -> dict[str, str]:
    """Return what the config says beside the other columns, arguments at their defaults left out."""
    found = configured(run) if run.config else {}
    return {path: value for path, value in found.items() if ".defaults." not in path}


def render_csv(results: Sequence[Result]) -> str:
    """Write runs as CSV, a line each, with every measurement but the long ones.

    NC2, NC3 and NC4 have a column each, as have image size, batch size and all that a cell says besides.
    The balanced accuracy of records that are older than it is that of their
    confusion.

    Args:
        results: Runs, whatever became of them.

    Returns:
        The text; a value that is not known is empty, mappings are JSON, and no text is taken for a formula.

    Example:
        >>> print(render_csv([Result(run_id="r", backbone="b", weights=None, dataset="d", method="m")])[:24])
        run_id,backbone,weights,
    """
    names = [field.name for field in dataclasses.fields(Result) if field.name not in _LEFT_OUT]
    measures = [name for name in dict.fromkeys(name for run in results for name in run.collapse) if name not in names]
    settings = list(dict.fromkeys(path for run in results for path in _settings(run)))
    lines: list[list[Any]] = [[*names, *measures, *_HASHES, *settings]]
    for run in results:
        record = to_json({name: getattr(run, name) for name in names})
        known = [balanced_accuracy(run) if name == "balanced_accuracy" else record[name] for name in names]
        collapse, hashes = [run.collapse.get(name) for name in measures], [run.provenance.get(name) for name in _HASHES]
        chosen = [_settings(run).get(path) for path in settings]
        lines.append([_cell(value) for value in (*known, *collapse, *hashes, *chosen)])
    return csv_text(lines)
