"""The reference names everything that is public."""

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import nc_finetune

DOCS = Path(__file__).parents[2] / "docs"
PACKAGE = Path(str(nc_finetune.__file__)).parent
ROOMS = sorted(
    path.parent.name for path in PACKAGE.glob("[a-z]*/__init__.py") if path.parent.name not in ("cli", "passes")
)


def load(name: str) -> ModuleType:
    """Import one of the files that build the site."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "_site" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_public(module: ModuleType, name: str) -> bool:
    """Tell what a user could mean to import: no modules, nothing that the room itself only uses."""
    return not name.startswith("_") and name != "class_names" and not isinstance(getattr(module, name), ModuleType)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_of_a_room_is_in_the_reference(room: str) -> None:
    module = importlib.import_module(f"nc_finetune.{room}")
    page = load("names").on_page_markdown((DOCS / "reference" / f"{room}.md").read_text(encoding="utf-8"))
    shown = re.findall(rf"^::: nc_finetune\.{room}\.(\w+)$", page, flags=re.MULTILINE)
    assert sorted(shown) == sorted(name for name in vars(module) if is_public(module, name))


def test_every_name_of_the_package_leads_to_its_room() -> None:
    page = load("names").on_page_markdown((DOCS / "reference" / "index.md").read_text(encoding="utf-8"))
    shown = re.findall(r"\[`nc_finetune\.(\w+)`\]", page)
    assert shown == sorted(nc_finetune._HOMES)


def test_every_error_is_in_the_reference() -> None:
    assert "::: nc_finetune.errors" in (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
