from pathlib import Path

import pytest
from check import find_tests

FILES = ("heads/cosine", "heads/etf", "_common/atomic_files", "run/_cell/choice", "errors", "cache/rows")
TESTS = ("heads/test_cosine", "heads/test_heads", "common/test_atomic_files", "run/test_runner", "test_errors")


@pytest.fixture(autouse=True)
def _in_a_made_up_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*(f"nc_finetune/{file}.py" for file in FILES), *(f"tests/{file}.py" for file in TESTS)):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


@pytest.mark.parametrize(
    ("file", "tests"),
    [
        ("nc_finetune/heads/cosine.py", ["tests/heads/test_cosine.py"]),
        ("nc_finetune/heads/etf.py", ["tests/heads"]),
        ("nc_finetune/_common/atomic_files.py", ["tests/common/test_atomic_files.py"]),
        ("nc_finetune/run", ["tests/run"]),
        ("nc_finetune/run/_cell/choice.py", ["tests/run"]),
        ("nc_finetune/errors.py", ["tests/test_errors.py"]),
        ("nc_finetune/cache/rows.py", ["tests"]),
        ("nc_finetune", ["tests"]),
    ],
)
def test_tests_lie_where_their_module_does(file: str, tests: list[str]) -> None:
    assert [str(path) for path in find_tests(Path(file))] == [file, *tests]


def test_tests_are_their_own() -> None:
    assert find_tests(Path("tests/heads")) == [Path("tests/heads")]


def test_a_whole_path_is_the_same() -> None:
    assert find_tests(Path.cwd() / "nc_finetune/errors.py") == [
        Path("nc_finetune/errors.py"),
        Path("tests/test_errors.py"),
    ]


@pytest.mark.parametrize("file", ["nc_finetune/heads/nope.py", "nc_finetune/nope/x.py"])
def test_what_is_not_there_is_said(file: str) -> None:
    with pytest.raises(SystemExit, match=f"there is no {file}"):
        find_tests(Path(file))
