"""Commands in a process group of their own, for tests that send signals to all of it."""

import functools
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")  # with everything imported: conftest.py
_PATIENCE = 300


def before(target: str, call: int, act: Callable[[], None]) -> None:
    """Let something happen before the n-th call of what is named ``module:function`` or ``module:Class.method``."""
    module, _, path = target.partition(":")
    *holders, name = path.split(".")
    holder = functools.reduce(getattr, holders, importlib.import_module(module))
    original, calls = getattr(holder, name), []

    @functools.wraps(original)
    def acting(*args: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == call:
            act()
        return original(*args, **options)

    setattr(holder, name, acting)


def _run(method: str, words: Sequence[str], folder: str, target: str, call: int, signals: Sequence[int]) -> None:
    from nc_finetune.cli import main

    multiprocessing.set_start_method(method, force=True)  # of workers: here it is that of the server
    os.setsid()
    os.chdir(folder)
    with Path("stderr.txt").open("w") as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if target:
        before(target, call, lambda: [os.killpg(0, signum) for signum in signals] and None)
    sys.exit(main(words))


def run_in_own_group(
    words: Sequence[str], target: str = "", call: int = 1, signals: Sequence[int] = ()
) -> tuple[int, str]:
    """Run ``nc-finetune`` in this folder, and tell its whole group to end before a call; return status and stderr."""
    method = multiprocessing.get_start_method()
    arguments = (method, list(words), str(Path.cwd()), target, call, [int(signum) for signum in signals])
    process = _CONTEXT.Process(target=_run, args=arguments)
    process.start()
    process.join(_PATIENCE)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{' '.join(words)} has not ended:\n{Path('stderr.txt').read_text()}")
    return process.exitcode, Path("stderr.txt").read_text()
