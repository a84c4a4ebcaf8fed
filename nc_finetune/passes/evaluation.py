"""A pass of one's own through data in the middle of somebody else's training, which leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from nc_finetune._common.lightning_internals import is_compiled


def is_sharded(strategy: Any) -> bool:
    """Tell whether no rank holds the whole network: under FSDP, model parallelism or DeepSpeed's third stage."""
    zero = getattr(strategy, "config", None) if "DeepSpeed" in type(strategy).__name__ else None
    third_stage = isinstance(zero, dict) and zero.get("zero_optimization", {}).get("stage") == 3
    return isinstance(strategy, (FSDPStrategy, ModelParallelStrategy)) or third_stage


def refuse_sharded(trainer: L.Trainer, name: str) -> None:
    """Refuse strategies under which no rank holds the whole network.

    Raises:
        ValueError: Under FSDP, model parallelism or DeepSpeed's third stage: their ranks must run every forward pass
            together, and weights of the classifier are only parts.
    """
    if is_sharded(trainer.strategy):
        raise ValueError(
            f"{name} needs the whole network in every process (one device, or DDP), got"
            f" {type(trainer.strategy).__name__}, "
            "which shards it; leave it out, and take the checkpoint to one device afterwards, e.g. for trainer.validate"
        )


def run_eagerly(module: nn.Module) -> Any:
    """Return a context in which ``torch.compile`` is left out, so that hooks on inner modules are called."""
    return torch.compiler.set_stance("force_eager") if is_compiled(module) else nullcontext()


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the random generators back afterwards; after an exception, too, where Lightning's own context does not."""
    raised: BaseException | None = None
    with isolate_rng():
        try:
            yield
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised


@contextmanager
def _modes_and_buffers_kept(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    buffers = [
        (part, name, buffer, buffer.clone()) for part in modes for name, buffer in part.named_buffers(recurse=False)
    ]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
        with torch.no_grad():
            for part, name, buffer, copy in buffers:
                part._buffers[name] = buffer.copy_(copy)


@contextmanager
def evaluating(trainer: L.Trainer, module: L.LightningModule, *, training: bool = False) -> Iterator[None]:
    """Eval mode, no gradients, the trainer's precision, no ``torch.compile``, and a trainer that says ``validating``.

    With ``training`` the trainer says that instead: transfer hooks then do what they do to a training batch.

    Afterwards every submodule is in the mode it was in, and every buffer, the random generators and the trainer's
    stage are as they were.
    """
    stage = trainer.state.stage
    inference = trainer.fit_loop.epoch_loop.val_loop.inference_mode
    with ExitStack() as contexts:
        contexts.enter_context(_modes_and_buffers_kept(module))
        contexts.enter_context(torch.inference_mode() if inference else torch.no_grad())
        contexts.enter_context(random_state_kept())
        contexts.enter_context(run_eagerly(module))
        contexts.enter_context(trainer.precision_plugin.forward_context())
        if training:
            trainer.training = True
        elif not trainer.testing:
            trainer.validating = True
        try:
            yield
        finally:
            trainer.state.stage = stage
