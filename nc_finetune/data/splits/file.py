"""Splits as a file: rows by the hashes of their images, so that they stay the same whatever reads the data."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nc_finetune._common.atomic_files import write_text_atomically
from nc_finetune.data.sources.tables import ImageTable
from nc_finetune.data.splits.content_hashes import row_hashes
from nc_finetune.data.splits.stratified import Indices
from nc_finetune.errors import DataWarning

FORMAT_VERSION = 1
SplitRows = dict[str, tuple[str, Indices]]


def write_splits(
    path: Path, tables: Mapping[str, ImageTable], rows: SplitRows, plan: Mapping[str, Any] | None = None
) -> None:
    """Write which images are in which split, and by which arguments they were drawn, as JSON."""
    splits = {
        split: {"table": table, "hashes": row_hashes(tables[table], indices.tolist())}
        for split, (table, indices) in rows.items()
    }
    content = {
        "format_version": FORMAT_VERSION,
        "plan": plan,
        "images": {name: len(table.labels) for name, table in tables.items()},
        "splits": splits,
    }
    write_text_atomically(path, json.dumps(content, indent=1) + "\n")


def read_plan(path: Path) -> dict[str, Any] | None:
    """Return how the splits of a file were drawn; ``None`` where it is of a version that did not say so.

    Raises:
        ValueError: If the file is damaged.
    """
    plan: dict[str, Any] | None = _content(path).get("plan")
    return plan


def compare_plans(path: Path, asked: dict[str, Any], written: dict[str, Any]) -> None:
    """Refuse splits that were drawn with other arguments; those that are ``None`` ask for nothing.

    Raises:
        ValueError: If they differ.
    """
    if asked["fold"] is None:
        asked = asked | {"num_folds": written.get("num_folds")}
    differ = {name: written.get(name) for name, value in asked.items() if value != written.get(name)}
    if wrong := {name: value for name, value in differ.items() if asked[name] is not None}:
        raise ValueError(
            f"{path} was drawn with {_said(wrong)}, and {_said({name: asked[name] for name in wrong})} is asked"
            f" for; give {_said(wrong)}, another split_file, or delete it to split anew"
        )
    if differ:
        warnings.warn(f"{path} was drawn with {_said(differ)}: these are its splits", DataWarning, stacklevel=2)


def _said(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def read_splits(path: Path, tables: Mapping[str, ImageTable]) -> SplitRows:
    """Find the images of a file of splits, in whatever order the source has them now.

    Returns:
        The table of each split, and its rows in rising order.

    Raises:
        ValueError: If the file is damaged, or an image is not in the source.
    """
    whole = _content(path)
    content = whole["splits"]
    left: dict[str, dict[str, deque[int]]] = {}
    for name in {part["table"] for part in content.values()}:
        if name not in tables:
            raise ValueError(
                f"{path} has a table {name!r}, the source has {', '.join(tables)}; it is of another source"
            )
        left[name] = defaultdict(deque)
        for row, digest in enumerate(row_hashes(tables[name], range(len(tables[name].labels)))):
            left[name][digest].append(row)
    found: SplitRows = {}
    for split, part in content.items():
        known = left[part["table"]]
        # An image that is there twice stands for two rows.
        rows = [known[digest].popleft() if known.get(digest) else -1 for digest in part["hashes"]]
        if missing := rows.count(-1):
            raise ValueError(
                f"{missing} of the {len(rows)} images of the {split} split in {path} are not in the source, the first"
                f" has the hash {part['hashes'][rows.index(-1)]}; bring them back, or delete the file to split anew"
            )
        found[split] = (part["table"], np.asarray(sorted(rows), dtype=np.int64))
    _say_what_is_new(path, whole.get("images") or {}, tables)
    return found


def _say_what_is_new(path: Path, images: dict[str, Any], tables: Mapping[str, ImageTable]) -> None:
    new = sum(max(len(table.labels) - images.get(name, 0), 0) for name, table in tables.items()) if images else 0
    if new:
        warnings.warn(
            f"{new} images came to the source after {path} was written, and are in no split; delete it to split anew",
            DataWarning,
            stacklevel=2,
        )


def _content(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        splits = content["splits"]
        fits = content["format_version"] == FORMAT_VERSION and {"train", "val", "test"} == set(splits)
        fits = fits and all(
            isinstance(part["table"], str) and (part["hashes"] or split != "train") for split, part in splits.items()
        )
        fits = fits and isinstance(content.get("plan") or {}, dict)
        images = content.get("images") or {}
        fits = fits and isinstance(images, dict) and all(isinstance(number, int) for number in images.values())
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of splits: {error!r}; delete it to split anew") from error
    if not fits:
        raise ValueError(f"{path} is no file of splits of version {FORMAT_VERSION}; delete it to split anew")
    return content
