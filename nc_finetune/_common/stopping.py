"""What the command does when it is told to end: Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ToldToEnd(BaseException):
    """The process was told to end; no ``except Exception`` holds it up.

    Attributes:
        signal: SIGINT or SIGTERM.
        advice: What stays of the work, and how to go on.
    """

    def __init__(self, signum: int) -> None:
        self.signal = signal.Signals(signum)
        self.advice = "what was written before is whole"
        super().__init__(f"stopped by {self.signal.name}")


@contextmanager
def told_to_end() -> Iterator[None]:
    """Raise :class:`ToldToEnd` at SIGINT and SIGTERM, where the main thread is; leave those that are ignored.

    The work that is interrupted cleans up, which exits by default at SIGTERM do not; handlers that a part of the work
    sets, as :class:`~nc_finetune.callbacks.ResumableRun` does, come first.

    Example:
        >>> import os
        >>> try:
        ...     with told_to_end():
        ...         os.kill(os.getpid(), signal.SIGTERM)
        ... except ToldToEnd as reason:
        ...     print(reason)
        stopped by SIGTERM
    """
    with handlers_kept():
        heed(_raise)
        yield


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM, and raise nothing: for code that would swallow it, and looks here now and then."""
    noted: list[int] = []
    with handlers_kept():
        heed(lambda signum, frame: noted.append(signum))
        yield noted


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers of SIGINT and SIGTERM back in the end, whoever has set others."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in before.items():
                signal.signal(signum, handler)


def heed(handler: Callable[[int, FrameType | None], Any]) -> dict[int, Any]:
    """Set a handler where that can be done, but not for signals that are ignored, as behind ``nohup``.

    Args:
        handler: Called with SIGINT and SIGTERM.

    Returns:
        The handlers that it replaces, by signal.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    heeded = [signum for signum in SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
    return {signum: signal.signal(signum, handler) for signum in heeded}


def _raise(signum: int, frame: FrameType | None) -> None:
    raise ToldToEnd(signum)
