"""Read docstrings as they are written here: roles become links, examples become blocks of code."""

import re
from functools import partial
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|func|meth|mod):`(~?)([\w.]+)`")
_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrite docstrings before mkdocstrings renders them."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Change the docstring of whatever has one."""
        if obj.docstring is not None:
            linked = _ROLE.sub(partial(_as_link, loader), obj.docstring.value)
            obj.docstring.value = _EXAMPLE.sub(r"\1```pycon\n\g<0>\n\1```", linked)


def _as_link(loader: griffe.GriffeLoader, role: re.Match[str]) -> str:
    """Link a full name where the reference has it; another stays code. One that does not exist raises."""
    tilde, path = role.groups()
    code = f"<code>{path.rpartition('.')[2] if tilde else path}</code>"
    if not path.startswith("nc_finetune."):
        return code
    place = loader.modules_collection[path].canonical_path
    return f'<autoref identifier="{place}" optional>{code}</autoref>'
