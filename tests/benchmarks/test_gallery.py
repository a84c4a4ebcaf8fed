from itertools import chain
from pathlib import Path

import pytest

from benchmarks.gallery import draw, page, read_pictures

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_what_the_command_writes() -> None:
    assert (DOCS / "gallery.md").read_text(encoding="utf-8") == page(read_pictures())


def test_every_picture_is_there_and_no_other() -> None:
    named = {picture.file for picture in chain(*read_pictures().values())}
    assert {path.name for path in (DOCS / "gallery").iterdir()} == named


@pytest.mark.slow
def test_all_pictures_are_drawn(tmp_path: Path) -> None:
    draw(tmp_path)
    named = {picture.file for picture in chain(*read_pictures().values())}
    assert {path.name for path in (tmp_path / "gallery").iterdir()} == named
