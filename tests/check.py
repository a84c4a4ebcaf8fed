"""Run the tests of one module, again and again while it changes: ``python tests/check.py nc_finetune/heads/cosine.py``.

Tests lie where their module does: those of ``nc_finetune/heads/cosine.py`` are ``tests/heads/test_cosine.py`` and its
doctests; where there is no such file, all of the room's, ``tests/heads``.
"""

import contextlib
import importlib
import os
import sys
import time
from pathlib import Path

import pytest

PACKAGE, TESTS = Path("nc_finetune"), Path("tests")
HEAVY = ("lightning", "timm", "torchmetrics", "jsonargparse")
PAUSE = 0.3


def find_tests(file: Path) -> list[Path]:
    """Return what has to be run: tests as they are named, those of a module or a folder with its doctests."""
    if not file.exists():
        raise SystemExit(f"there is no {file}; name a module or tests, seen from the project's root")
    file = file.resolve().relative_to(Path.cwd().resolve())
    if file == PACKAGE:
        return [file, TESTS]
    if PACKAGE not in file.parents:
        return [file]
    room = TESTS / file.relative_to(PACKAGE).with_suffix("").parts[0].removeprefix("_")
    name = f"test_{file.stem.removeprefix('_')}.py"
    named = list(TESTS.glob(name) if file.parent == PACKAGE else room.rglob(name))
    # What has no tests of its own is tested by whoever uses it.
    return [file, *(named or [room if room.exists() else TESTS])]


def run(paths: list[Path]) -> int:
    """Run tests in a process of their own, which inherits what this one has imported."""
    process = os.fork()
    if process == 0:
        status = pytest.main(["-q", "-x", "-n", "0", *map(str, paths)])
        sys.stdout.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def state(paths: list[Path]) -> dict[Path, int]:
    files = [inner for path in paths for inner in (path.rglob("*.py") if path.is_dir() else [path])]
    return {file: file.stat().st_mtime_ns for file in files if file.exists()}


def watch(paths: list[Path]) -> None:
    """Run them whenever they change; what takes long to import is imported once."""
    for name in HEAVY:
        importlib.import_module(name)
    while True:
        before = state(paths)
        run(paths)
        while state(paths) == before:
            time.sleep(PAUSE)


def main() -> int:
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        raise SystemExit("name a module or tests: make check FILE=nc_finetune/heads/cosine.py")
    paths = find_tests(Path(words[0]))
    print(*paths)  # noqa: T201
    if "--watch" not in words:
        return run(paths)
    with contextlib.suppress(KeyboardInterrupt):
        watch(paths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
