"""Every run as a line of CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

from nc_finetune.benchmark.results import Result

# Long, and drawn in the page; they stay in the JSON files.
_LEFT_OUT = ("learning_curve", "class_names", "confusion", "provenance", "schema_version")
# What a spreadsheet would take for a formula, and run.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _plain(value: Any) -> Any:
    """Make a value stand for itself in a spreadsheet."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value
    return f"'{text}" if isinstance(text, str) and text.startswith(_FORMULA) else text


def render_csv(results: Sequence[Result]) -> str:
    """Write runs as CSV, a line each, with every measurement but the long ones.

    Args:
        results: Runs, whatever became of them.

    Returns:
        The text; a value that is not known is empty, mappings are JSON, and no text is taken for a formula.

    Example:
        >>> print(render_csv([Result(run_id="r", backbone="b", weights=None, dataset="d", method="m")])[:24])
        run_id,backbone,weights,
    """
    names = [field.name for field in dataclasses.fields(Result) if field.name not in _LEFT_OUT]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "git_commit", "data_fingerprint", "weights_hash"])
    for run in results:
        hashes = (run.provenance.get(name) for name in ("git_commit", "data_fingerprint", "weights_hash"))
        writer.writerow([_plain(getattr(run, name)) for name in names] + [_plain(value) for value in hashes])
    return text.getvalue()
