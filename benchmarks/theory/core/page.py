"""``theory.html`` and ``theory.md``: every claim of a folder of results, the page with its pictures in one file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.theory.core.claims import number
from nc_finetune._common.atomic_files import write_text_atomically

_TEMPLATES = Path(__file__).parent.parent / "templates"


def _read(file: Path) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    picture = base64.b64encode(file.with_suffix(".png").read_bytes()).decode("ascii")
    return written | {"picture": f"data:image/png;base64,{picture}"}


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["number"] = lambda value: "nan" if value is None else number(value)
    made.filters["cell"] = lambda text: text.replace("|", "\\|")  # a bar would end the cell of a Markdown table
    return made


def write_page(folder: Path, order: Sequence[str]) -> Path:
    """Write the page and the Markdown table from the JSON files and pictures in a folder.

    Args:
        folder: Holds ``<experiment>.json`` and ``<experiment>.png``.
        order: Names of the experiments as they shall follow; those that are not there are left out.

    Returns:
        The path of the page.
    """
    files = [folder / f"{name}.json" for name in order]
    results = [_read(file) for file in files if file.exists()]
    claims = [claim for result in results for claim in result["claims"]]
    environment = _environment()
    for name in ("theory.html", "theory.md"):
        rendered = environment.get_template(f"{name}.jinja").render(results=results, claims=claims)
        write_text_atomically(folder / name, rendered)
    return folder / "theory.html"
