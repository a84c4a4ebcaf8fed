"""The order in which callbacks have their turn."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from nc_finetune.callbacks.keep_statistics import KeepStatistics
from nc_finetune.callbacks.resumable_run import ResumableRun
from nc_finetune.callbacks.solve_head import SolveHead


def put_in_order(callbacks: list[L.Callback]) -> None:
    """Sort callbacks, in place, by what they need of each other; others stay as they were given.

    First what chooses the tuned part, since averages copy the model as it is set up; at the end what solves a head on
    the weights that are left, then what keeps statistics for that head, then files, and last of all the file with the
    state of all others.

    Args:
        callbacks: Of a trainer; ``comes_first = True`` marks those that do.

    Example:
        >>> callbacks = [ResumableRun(), Checkpoint(), KeepStatistics(), SolveHead(), L.Callback()]
        >>> put_in_order(callbacks)
        >>> [type(callback).__name__ for callback in callbacks]
        ['Callback', 'SolveHead', 'KeepStatistics', 'Checkpoint', 'ResumableRun']
    """
    callbacks.sort(key=_place)


def _place(callback: L.Callback) -> int:
    if getattr(callback, "comes_first", False):
        return 0
    later = (SolveHead, KeepStatistics, Checkpoint, ResumableRun)
    return 1 + max((place for place, kind in enumerate(later, start=1) if isinstance(callback, kind)), default=0)
