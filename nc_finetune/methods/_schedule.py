"""How learning rates go along a fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch

from nc_finetune.errors import check_name

ScheduleName = Literal["cosine", "linear", "constant"]


def check_schedule(schedule: str, warmup: int | float) -> None:
    """Refuse what is no schedule.

    Raises:
        ValueError: With the valid words, or the range of ``warmup``.
    """
    check_name("schedule", schedule, get_args(ScheduleName))
    if warmup < 0 or (warmup > 1 and warmup != int(warmup)):
        raise ValueError(f"warmup must be a number of steps, or a share of all steps in [0, 1), got {warmup}")


def rate_factor(schedule: ScheduleName, warmup: int | float, total: float) -> Callable[[int], float]:
    """Return the factor of every learning rate by the number of steps that were taken.

    Over the warm-up it rises along a line from ``1 / (w + 1)`` of w steps, so that no step is lost on a rate of 0; then
    it falls to 0 along half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983) or a line, or stays 1.

    Args:
        schedule: ``"cosine"``, ``"linear"`` or ``"constant"``.
        warmup: Steps of the warm-up, or below 1 their share of all.
        total: Steps of the fit; without an end, ``inf``, nothing falls, and a share of it is no warm-up.

    Example:
        >>> factor = rate_factor("cosine", 0, 4)
        >>> [round(factor(step), 3) for step in range(6)]
        [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
        >>> [round(rate_factor("constant", 3, 8)(step), 2) for step in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    endless = not math.isfinite(total)
    rising = int(warmup) if warmup >= 1 else (0 if endless else round(warmup * total))
    falling = max(total - rising, 1)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        done = min((step - rising) / falling, 1.0)
        if schedule == "constant" or endless:
            return 1.0
        return 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2

    return factor


def follow(scheduler: torch.optim.lr_scheduler.LambdaLR) -> None:
    """Set the rates of a scheduler's optimizer to where it is: those of a checkpoint may be of a shorter fit.

    Args:
        scheduler: One whose state was just loaded.
    """
    groups: Any = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    for group, rate, factor in groups:
        group["lr"] = rate * factor(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
