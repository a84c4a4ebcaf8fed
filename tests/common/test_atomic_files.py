import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nc_finetune._common.atomic_files import check_file, write_atomically, write_text_atomically


def test_the_content_is_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.bin", b"\x00\xff\r\n")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff\r\n"


def test_text_is_utf_8_with_its_own_line_ends(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "a.txt", "é\n\r\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n\r\n"


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"a long old content")
    write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_folders_are_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "b/c/a", b"new")
    assert (tmp_path / "b/c/a").read_bytes() == b"new"


def test_nothing_else_is_left_in_the_folder(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_what_fails_half_way_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(descriptor: int) -> None:
        raise error

    write_atomically(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "a", b"new")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a": b"old"}


def test_a_reader_never_sees_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Look at the file whenever the system is asked to store or move something.
    seen = []

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*args: Any, **options: Any) -> Any:
            seen.append((tmp_path / "a").read_bytes())
            return function(*args, **options)

        return watch

    write_atomically(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", watched(os.fsync))
    monkeypatch.setattr(Path, "replace", watched(Path.replace))
    write_atomically(tmp_path / "a", b"new")
    assert seen == [b"old", b"old"]


def test_the_content_is_on_the_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    synchronize = os.fsync

    def watch(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        synchronize(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    write_atomically(tmp_path / "a", b"four")
    assert sizes == [4]


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "a", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_the_longest_name_that_there_may_be(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("a" * 255), b"new")
    assert (tmp_path / ("a" * 255)).read_bytes() == b"new"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("folder", IsADirectoryError, "a file is written, and .*folder is a folder; name a file in it"),
        ("file/b/c", NotADirectoryError, "is to lie in .*file, which is a file; name another folder"),
    ],
)
def test_where_no_file_can_be_is_said(tmp_path: Path, name: str, error: type[Exception], message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(error, match=message):
        write_atomically(tmp_path / name, b"new")
    check_file(tmp_path / "folder/new/c")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
