"""Fill the pages of the reference with every public name of a room, read from its ``__init__``; nothing is imported."""

import re
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[2] / "nc_finetune"
_MARK = re.compile(r"^<!-- public names of nc_finetune\.?(\w*) -->$", re.MULTILINE)
_IMPORTED = re.compile(r"^ *from (\S+) import (\w+) as \2$", re.MULTILINE)
_ASSIGNED = re.compile(r"^([A-Z]\w*) = ", re.MULTILINE)


def public_names(room: str) -> dict[str, str]:
    """Return the public names of a room, or of the package where it is empty, with the module that each is from.

    Public is what ``__init__`` imports as itself, ``from ... import Name as Name``, and a constant that it makes.
    """
    source = (_PACKAGE / room / "__init__.py").read_text(encoding="utf-8")
    imported = {name: module for module, name in _IMPORTED.findall(source)}
    return dict(sorted((imported | dict.fromkeys(_ASSIGNED.findall(source), f"nc_finetune.{room}")).items()))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what mkdocstrings reads in the place of a mark."""
    return _MARK.sub(lambda found: _room(found[1]) if found[1] else _package(), markdown)


def _room(room: str) -> str:
    return "\n\n".join(f"::: nc_finetune.{room}.{name}" for name in public_names(room))


def _package() -> str:
    """List what the package has by itself; each name is described where it is at home."""
    return "\n".join(f"- [`nc_finetune.{name}`][{home}.{name}]" for name, home in public_names("").items())
