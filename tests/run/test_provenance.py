import subprocess

import pytest

from nc_finetune.run import provenance


def answers(monkeypatch: pytest.MonkeyPatch, tracked: bool, status: str) -> None:
    replies = {"ls-files": "provenance.py" if tracked else None, "rev-parse": "abc123", "status": status}
    monkeypatch.setattr(provenance, "_git", lambda *words: replies[words[0]])


@pytest.mark.parametrize(("status", "dirty"), [("", False), (" M nc_finetune/cli.py", True)])
def test_commit_and_dirty_flag_are_those_of_the_checkout(
    monkeypatch: pytest.MonkeyPatch, status: str, dirty: bool
) -> None:
    answers(monkeypatch, tracked=True, status=status)
    assert provenance.git_state() == {"git_commit": "abc123", "git_dirty": dirty}


def test_repository_around_an_installed_package_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, tracked=False, status="")
    assert provenance.git_state() == {"git_commit": None, "git_dirty": None}


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert provenance.git_state()["git_commit"] is None
