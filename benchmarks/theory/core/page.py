"""``theory.html``: every claim of a folder of results, with its picture, in one file that loads nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.theory.core.claims import number
from nc_finetune.files import write_text_atomically

_TEMPLATES = Path(__file__).parent.parent / "templates"


def _read(file: Path) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    picture = file.with_suffix(".svg").read_bytes()
    written["picture"] = "data:image/svg+xml;base64," + base64.b64encode(picture).decode("ascii")
    return written


def write_page(folder: Path, order: Sequence[str]) -> Path:
    """Write the page from the JSON files and pictures in a folder.

    Args:
        folder: Holds ``<experiment>.json`` and ``<experiment>.svg``.
        order: Names of the experiments as they shall follow on the page; those that are not there are left out.

    Returns:
        The path of the page.
    """
    files = [folder / f"{name}.json" for name in order]
    results = [_read(file) for file in files if file.exists()]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: "nan" if value is None else number(value)
    claims = [claim for result in results for claim in result["claims"]]
    page = folder / "theory.html"
    rendered = environment.get_template("theory.html.jinja").render(results=results, claims=claims)
    write_text_atomically(page, rendered)
    return page
