from pathlib import Path

import pytest
from check import tests_of

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("file", "tests"),
    [
        ("nc_finetune/heads/cosine.py", ["tests/heads/test_cosine.py"]),
        ("nc_finetune/_common/atomic_files.py", ["tests/common/test_atomic_files.py"]),
        ("nc_finetune/run", ["tests/run"]),
        ("nc_finetune/run/_cell/choice.py", ["tests/run"]),
        ("nc_finetune/errors.py", ["tests/test_errors.py"]),
    ],
)
def test_tests_lie_where_their_module_does(file: str, tests: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert [str(path) for path in tests_of(Path(file))] == [file, *tests]


def test_tests_are_their_own() -> None:
    assert tests_of(Path("tests/heads")) == [Path("tests/heads")]
