"""The page about backbones and the code that writes it agree."""

import re

import pytest

from benchmarks.backbones.page import FACTS, LAYERS, PAGE, WORKED, measure, recipe_names

CHEAP = ("mobilenetv4_medium", "dinov2_vit_s14", "dinov3_vit_s16", "swinv2_tiny")


def tables() -> list[list[list[str]]]:
    """Return the cells of the page's tables, head first; the last one stands in two halves."""
    found = re.findall(r"(?:^\|.*\|\n)+", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    facts, layers, first, second = (
        [line.strip("| ").split(" | ") for line in table.splitlines() if "---" not in line] for table in found
    )
    return [facts, layers, [[*row, *more[1:]] for row, more in zip(first, second, strict=True)]]


def test_every_recipe_is_on_the_page() -> None:
    facts, layers, works = tables()
    assert (facts[0], layers[0], works[0]) == (FACTS, LAYERS, WORKED)
    for table in (facts, layers, works):
        assert [row[0].strip("`") for row in table[1:]] == recipe_names()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", CHEAP)
def test_the_page_says_what_is_measured(recipe: str) -> None:
    on_page = [next(row for row in table if row[0] == f"`{recipe}`") for table in tables()]
    *cells, notes = measure(recipe)
    assert on_page == cells
    assert notes == []
