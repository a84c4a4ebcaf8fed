"""Carry into the site what pages name outside ``docs``: reports with their pictures, recipes, the changelog.

Links stay as they work in a checkout, ``../benchmarks/results/quickstart/report.md``.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)\s#]+)")
_PLACE = "repository"
_OUT = "../"


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add every file of the repository that a page leads to, and what that file leads to."""
    waiting = [path.removeprefix(_OUT) for page in files.documentation_pages() for path in _links(page)]
    while waiting:
        path = waiting.pop()
        if path.startswith("..") or files.get_file_from_path(place := f"{_PLACE}/{path}"):
            continue
        file = File.generated(config, place, abs_src_path=str(_ROOT / path))
        files.append(file)
        if file.is_documentation_page():
            waiting += [relpath(inner, _PLACE) for inner in _links(file, out="")]
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links that leave ``docs`` lead to what was carried over."""
    folder = dirname(page.file.src_uri)
    return markdown if folder.startswith(_PLACE) else _LINK.sub(lambda found: _moved(found[1], folder), markdown)


def _moved(target: str, folder: str) -> str:
    path = normpath(join(folder, target))
    return relpath(join(_PLACE, path.removeprefix(_OUT)), folder or ".") if path.startswith(_OUT) else target


def _links(page: File, out: str = _OUT) -> list[str]:
    """Return where the links of a page lead, seen from ``docs``, of those that leave it where ``out`` is not empty."""
    paths = [normpath(join(dirname(page.src_uri), target)) for target in _LINK.findall(page.content_string)]
    return [path for path in paths if path.startswith(out)]
