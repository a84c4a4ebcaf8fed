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
from nc_finetune.csv_text import plain_cell

# Long, and drawn in the page: they stay in the JSON files. Or in columns of their own.
_LEFT_OUT = ("learning_curve", "class_names", "confusion", "provenance", "schema_version")
_OWN_COLUMNS = ("collapse", "balanced_accuracy")
_HASHES = ("git_commit", "data_fingerprint", "weights_hash")


def _plain(value: Any) -> Any:
    """Make a value stand for itself in a spreadsheet."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value
    return plain_cell(text)


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
    writer.writerow([*names, *measures, *_HASHES])
    for run in results:
        known = (balanced_accuracy(run) if name == "balanced_accuracy" else getattr(run, name) for name in names)
        collapse, hashes = (run.collapse.get(name) for name in measures), (run.provenance.get(name) for name in _HASHES)
        writer.writerow(map(_plain, (*known, *collapse, *hashes)))
    return text.getvalue()
