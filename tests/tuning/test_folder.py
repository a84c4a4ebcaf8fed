"""The folder of a tuning: whole files, other images, what has changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nc_finetune.tuning.folder import MODEL, Identity, Step, TuneFolder


def identity(source: str = "photos", images: dict[str, str] | None = None, **settings: object) -> Identity:
    return Identity(source, dict(settings), {"a": "train cat", "b": "train dog"} if images is None else images)


def test_goes_on_where_nothing_has_changed(tmp_path: Path) -> None:
    folder = TuneFolder(tmp_path)
    assert folder.open_for(identity(seed=1)) == []
    folder.write("first", Step({"a": 1}, {"x": torch.ones(2)}))
    assert TuneFolder(tmp_path).open_for(identity(seed=1)) == []
    found = TuneFolder(tmp_path).read("first")
    assert found is not None
    assert found.facts == {"a": 1}
    assert found.tensors["x"].tolist() == [1, 1]


def test_says_what_has_changed_and_keeps_what_was_found(tmp_path: Path) -> None:
    folder = TuneFolder(tmp_path)
    folder.open_for(identity(seed=1))
    folder.write("first", Step())
    (tmp_path / MODEL).write_bytes(b"model")
    changed = {"a": "train dog", "c": "train cat"}
    found = folder.open_for(identity(images=changed, seed=2))
    assert found == [
        "1 images are new",
        "1 images are gone",
        "1 images are in another class or split",
        "seed is 2 in place of 1",
    ]
    assert folder.read("first") is None
    assert (tmp_path / "earlier" / "1" / MODEL).read_bytes() == b"model"
    assert folder.open_for(identity(images=changed, seed=2)) == []


def test_nothing_is_said_or_kept_where_nothing_was_found(tmp_path: Path) -> None:
    TuneFolder(tmp_path).open_for(identity(seed=1))
    assert TuneFolder(tmp_path).open_for(identity(seed=2)) == []
    assert not (tmp_path / "earlier").exists()
    assert TuneFolder(tmp_path).open_for(identity(seed=2)) == []


def test_refuses_a_folder_of_another_source(tmp_path: Path) -> None:
    TuneFolder(tmp_path).open_for(identity())
    with pytest.raises(ValueError, match="holds a tuning of photos, not of others; choose another --out"):
        TuneFolder(tmp_path).open_for(identity("others"))


def test_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(ValueError, match=r"holds other files, such as thesis\.tex"):
        TuneFolder(tmp_path).open_for(identity())
    with pytest.raises(ValueError, match="holds other files"), TuneFolder(tmp_path).locked():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["", "[]", '{"format_version": 99}', '{"format_version": 1}'])
def test_refuses_a_damaged_description(tmp_path: Path, content: str) -> None:
    (tmp_path / "tune.json").write_text(content)
    with pytest.raises(ValueError, match="damaged or of another version"):
        TuneFolder(tmp_path).open_for(identity())


@pytest.mark.parametrize("content", [b"", b"\0" * 100])
def test_a_damaged_step_is_to_be_done_again(tmp_path: Path, content: bytes) -> None:
    folder = TuneFolder(tmp_path)
    folder.write("first", Step({"a": 1}))
    (path,) = (tmp_path / "steps").iterdir()
    path.write_bytes(content)
    assert folder.read("first") is None


def test_a_second_process_is_kept_out_and_leftovers_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nc_finetune.tuning.folder._PATIENCE", 0.01)
    leftover = tmp_path / ".abc.tmp"
    leftover.write_bytes(b"half")
    with TuneFolder(tmp_path).locked():
        assert not leftover.exists()
        with pytest.raises(ValueError, match="another tuning is at work"), TuneFolder(tmp_path).locked():
            pass
    with TuneFolder(tmp_path).locked():
        pass


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("")
    with pytest.raises(NotADirectoryError, match="--out is a folder"), TuneFolder(path).locked():
        pass


def test_images_that_are_there_twice_count_twice() -> None:
    images = [("a", "train cat"), ("a", "train cat"), ("b", "train dog")]
    found = Identity.of("photos", {}, iter(images))
    assert len(found.images) == 3
    assert found.changes_since(Identity.of("photos", {}, iter(images[1:]))) == ["1 images are new"]
