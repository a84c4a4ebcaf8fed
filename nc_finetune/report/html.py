"""Pages of HTML that open from a disk: templates of the package, filled in."""

from __future__ import annotations

from importlib import resources
from typing import Any

_FOLDER = "report/templates"


def page_part(name: str) -> str:
    """Return a file that pages are made of, such as ``"report.css"``."""
    return resources.files("nc_finetune").joinpath(_FOLDER).joinpath(name).read_text(encoding="utf-8")


def render(name: str, **values: Any) -> str:
    """Fill in a template; what it shows is escaped.

    Args:
        name: Of the template, such as ``"tuned.html.jinja"``.
        values: By their names there; the style sheet is ``css``.

    Raises:
        ImportError: If jinja2, of the extra ``report``, is not installed.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # the order of the methods means something
    return environment.from_string(page_part(name)).render(css=page_part("report.css"), **values)
