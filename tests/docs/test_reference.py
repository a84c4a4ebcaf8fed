"""The reference names everything that is public."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest
from site_files import DOCS, load

import nc_finetune
from nc_finetune.heads import HEAD_NAMES
from nc_finetune.losses import LOSS_NAMES
from nc_finetune.methods import METHOD_NAMES

PACKAGE = Path(str(nc_finetune.__file__)).parent
ROOMS = sorted(
    path.parent.name for path in PACKAGE.glob("[a-z]*/__init__.py") if path.parent.name not in ("cli", "passes")
)


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


@pytest.mark.parametrize(
    ("page", "names"),
    [("method.md", METHOD_NAMES), ("how-to/train.md", [*METHOD_NAMES, *HEAD_NAMES, *LOSS_NAMES])],
)
def test_tables_have_every_method_head_and_loss(page: str, names: list[str]) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}" not in text] == []


def test_every_error_is_in_the_reference() -> None:
    assert "::: nc_finetune.errors" in (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
