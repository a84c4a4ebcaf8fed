"""A loader whose worker processes leave Ctrl-C and SIGTERM to the process that reads from it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from torch.utils.data import DataLoader, Dataset

from nc_finetune._common.lightning_internals import has_workers

_LEFT_TO_PARENT = (signal.SIGINT, signal.SIGTERM)
WorkerInit = Callable[[int], None]


class LeaveSignals:
    """What a worker does first: only its parent may end it, from now on.

    A terminal sends Ctrl-C to every process of the command, as clusters and ``timeout`` do with SIGTERM. Workers that
    die of it take the epoch along, before their parent could write a checkpoint.

    SIGTERM stays blocked and is waited for in a thread, which knows the sender: torch ends workers that hang by it,
    too. Where the system does not tell the sender (macOS), SIGTERM ends a worker as ever.

    Args:
        then: What the worker does next.
    """

    def __init__(self, then: WorkerInit | None = None) -> None:
        self.then = then

    def __call__(self, worker_id: int) -> None:
        """Do so, in the worker."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "sigwaitinfo"):
            signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)
            threading.Thread(target=_end_for_parent_alone, daemon=True).start()
        elif hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_PARENT)
        if self.then is not None:
            self.then(worker_id)


def _end_for_parent_alone() -> None:
    parent = multiprocessing.parent_process()
    while signal.sigwaitinfo((signal.SIGTERM,)).si_pid != (parent and parent.pid):
        pass
    os._exit(0)


@contextmanager
def _signals_wait(method: str | None) -> Iterator[None]:
    """Let signals wait while workers start: they inherit what is blocked, and get none before they are ready."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    if multiprocessing.get_start_method() != "fork" or method not in (None, "fork"):
        resource_tracker.ensure_running()  # to start it unblocks these signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class PatientLoader(DataLoader[Any]):
    """A ``DataLoader`` whose workers leave Ctrl-C and SIGTERM to their parent.

    Args:
        dataset: What is read.
        worker_init_fn: Called in each worker, after it was told so.
        **options: As for ``DataLoader``.
    """

    def __init__(self, dataset: Dataset[Any], *, worker_init_fn: WorkerInit | None = None, **options: Any) -> None:
        if not isinstance(worker_init_fn, LeaveSignals):  # of a loader that this one is a copy of
            worker_init_fn = LeaveSignals(worker_init_fn)
        super().__init__(dataset, worker_init_fn=worker_init_fn, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Return the batches; workers start here, unless they have."""
        if self.num_workers == 0 or has_workers(self):
            return super().__iter__()
        context = self.multiprocessing_context
        with _signals_wait(context and context.get_start_method()):
            return super().__iter__()
