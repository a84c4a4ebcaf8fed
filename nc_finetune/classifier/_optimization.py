"""The optimizer of a fit and its schedule, and what resumes them."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim.lr_scheduler import LambdaLR

from nc_finetune.methods import ScheduleName, follow, rate_factor


def optimizer_and_schedule(
    optimizer: torch.optim.Optimizer, schedule: ScheduleName, warmup: int | float, steps: float
) -> OptimizerLRScheduler:
    """Return what Lightning takes from ``configure_optimizers``, for a fit of so many steps, ``inf`` without an end.

    Raises:
        ValueError: If the optimizer has a rate of its own.

    Warns:
        UserWarning: If rates cannot fall, since the fit has no end.
    """
    _check_rates(optimizer)
    if not math.isfinite(steps) and schedule != "constant":
        warnings.warn(
            "the fit has no end (max_steps=-1 and no max_epochs), so that the rates cannot fall along a"
            f" {schedule}: they stay constant",
            stacklevel=2,
        )
    scheduler = LambdaLR(optimizer, rate_factor(schedule, warmup, steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def follow_this_fit(configs: Iterable[Any]) -> None:
    """Let schedulers of a trainer go on with the rates of this fit: the checkpoint may be of a shorter one."""
    for config in configs:
        if isinstance(config.scheduler, LambdaLR):
            follow(config.scheduler)


def adopt_older_schedules(checkpoint: dict[str, Any]) -> None:
    """Make states in a checkpoint of a version whose cosine was torch's own those of today's schedulers."""
    for state in checkpoint.get("lr_schedulers", []):
        state.setdefault("lr_lambdas", [None] * len(state.get("base_lrs", [])))


def _check_rates(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer with a learning rate of its own, which that of its groups would replace in silence."""
    given = optimizer.defaults.get("lr")
    parameter = inspect.signature(type(optimizer)).parameters.get("lr")
    rates = [group["lr"] for group in optimizer.param_groups]
    if given is None or parameter is None or given == parameter.default or given in rates:
        return
    raise ValueError(
        f"the optimizer was given lr={given}, and its groups have the rates {rates}, which count; leave lr out of it"
        f" and pass learning_rate={given} or head_learning_rate={given}"
    )
