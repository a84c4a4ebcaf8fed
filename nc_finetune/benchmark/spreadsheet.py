"""Every run as a line of CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

from nc_finetune.benchmark.results import Result
from nc_finetune.benchmark.score import balanced_accuracy

# Long, and drawn in the page: they stay in the JSON files. Or in columns of their own.
_LEFT_OUT = ("learning_curve", "class_names", "confusion", "provenance", "schema_version")
_OWN_COLUMNS = ("collapse", "balanced_accuracy")
_HASHES = ("git_commit", "data_fingerprint", "weights_hash")
# What a spreadsheet would take for a formula, and run.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _plain(value: Any) -> Any:
    """Make a value stand for itself in a spreadsheet."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value
    if not isinstance(text, str):
        return text
    # The csv module leaves a carriage return without quotes, where a reader takes it for the end of the line.
    return ("'" if text.startswith(_FORMULA) else "") + text.replace("\r", " ")


def render_csv(results: Sequence[Result]) -> str:
    """Write runs as CSV, a line each, with every measurement but the long ones.

    NC2, NC3 and NC4 have a column each, and so has the balanced accuracy: the mean recall over test classes, in per
    cent.

    Args:
        results: Runs, whatever became of them.

    Returns:
        The text; a value that is not known is empty, mappings are JSON, and no text is taken for a formula.

    Example:
        >>> print(render_csv([Result(run_id="r", backbone="b", weights=None, dataset="d", method="m")])[:24])
        run_id,backbone,weights,
    """
    names = [field.name for field in dataclasses.fields(Result) if field.name not in (*_LEFT_OUT, *_OWN_COLUMNS)]
    measures = [name for name in dict.fromkeys(name for run in results for name in run.collapse) if name not in names]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "balanced_accuracy", *measures, *_HASHES])
    for run in results:
        known = (getattr(run, name) for name in names)
        collapse, hashes = (run.collapse.get(name) for name in measures), (run.provenance.get(name) for name in _HASHES)
        writer.writerow(map(_plain, (*known, balanced_accuracy(run), *collapse, *hashes)))
    return text.getvalue()
