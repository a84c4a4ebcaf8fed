from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tuning_photos import write_photos

from nc_finetune.tuning import search
from nc_finetune.tuning.candidates import Candidate


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


@pytest.fixture
def short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates of one epoch, which are always worth the time, and one of each kind."""
    monkeypatch.setattr(search, "_EPOCHS", 1)
    monkeypatch.setattr(search, "proposals", _one_of_a_kind(search.proposals))


def _one_of_a_kind(proposals: Callable[..., Iterator[list[Candidate]]]) -> Callable[..., Iterator[list[Candidate]]]:
    """Propose the first candidate of each kind alone."""

    def propose(*arguments: Any) -> Iterator[list[Candidate]]:
        seen: set[str] = set()
        for together in proposals(*arguments):
            new = {one.kind: one for one in reversed(together) if one.kind not in seen}
            seen |= new.keys()
            yield list(reversed(new.values()))

    return propose
