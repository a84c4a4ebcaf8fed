"""What went wrong, in one sentence, and what to do about it."""

from __future__ import annotations

import errno

import torch

_MEMORY = (
    "the memory of the {place} is full: {detail}. Lower --data.batch_size (and raise"
    " --trainer.accumulate_grad_batches by as much; in a grid settings.batch_size), compute with --trainer.precision"
    " bf16-mixed, {cache}, or lower --data.image_size, or tune a later block"
)
_CACHES = {
    "device": "keep what the frozen layers give with --trainer.callbacks+=nc_finetune.callbacks.PrefixCache",
    "computer": "give PrefixCache a folder, or a smaller budget_gb, where it keeps what the frozen layers give",
}
_FOLDER = "{error}. Change its permissions, or name another folder; what was written before is whole"
_DISK = "no space is left on the disk: {error}. What was written before is whole; free some space and run it again"


def explain(error: BaseException) -> str | None:
    """Say what an error of the machine means.

    Args:
        error: What was raised.

    Returns:
        A sentence, or ``None`` where the error speaks for itself or is a defect of the program.

    Example:
        >>> explain(MemoryError("8 GiB"))
        'the memory of the computer is full: 8 GiB. Lower --data.batch_size (and raise ...'
    """
    if isinstance(error, torch.OutOfMemoryError):
        return _memory("device", error)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return _memory("computer", error)
    if isinstance(error, RuntimeError) and "bus error" in str(error).lower():
        return f"shared memory is full: {_first(error)}. Set --data.num_workers 0, or enlarge /dev/shm"
    numbers = {cause.errno for cause in (error, error.__cause__) if isinstance(cause, OSError)}
    if numbers & {errno.ENOSPC, errno.EDQUOT}:
        return _DISK.format(error=_first(error))
    if isinstance(error, OSError) and numbers & {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}:
        return _FOLDER.format(error=_first(error))
    return None


def _memory(place: str, error: BaseException) -> str:
    return _MEMORY.format(place=place, detail=_first(error), cache=_CACHES[place])


def _first(error: BaseException) -> str:
    """Return the first sentence: torch adds statistics of its allocator."""
    return str(error).partition("\n")[0].partition(". GPU ")[0].rstrip(".")
