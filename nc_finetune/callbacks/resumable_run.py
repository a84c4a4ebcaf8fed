"""A checkpoint from which a run that was cut off goes on as if nothing had happened."""

from __future__ import annotations

import math
import os
import random
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from nc_finetune._common.lightning_internals import accumulates, forget_restart
from nc_finetune._common.stopping import heed
from nc_finetune.errors import TrainingStoppedError

LAST = "last.ckpt"


class RunInterruptedError(TrainingStoppedError):
    """Training ended because the process was told to, after a step and with a checkpoint.

    Attributes:
        signal: SIGTERM or SIGINT.
        checkpoint: Where training goes on from.
    """

    def __init__(self, signum: int, step: int, checkpoint: Path) -> None:
        self.signal = signal.Signals(signum)
        self.checkpoint = checkpoint
        super().__init__(f"stopped by {self.signal.name} after step {step}; go on with the checkpoint {checkpoint}")


class ResumableRun(Checkpoint):
    """Write the whole state of training to one file, again and again, and when the process is told to end.

    SIGTERM (what clusters send before they take a machine away) and Ctrl-C end training after the optimizer's step,
    with a checkpoint; a second Ctrl-C ends at once. Both often reach every process of a command: workers of
    :class:`~nc_finetune.ImageData` leave them to this one, and those of another ``DataLoader`` need
    ``worker_init_fn=LeaveSignals()`` of :mod:`nc_finetune.data.patient_loader`, not to die of them. Between batches
    whose gradients are accumulated nothing is written, since gradients are no part of a checkpoint, nor before a
    validation that is due. After SIGKILL or a power cut the file is the last that was complete. In either case
    ``trainer.fit(..., ckpt_path=...)`` goes on: with :class:`~nc_finetune.ImageData` the images come in the same order
    with the same augmentation, also in the middle of an epoch, and random numbers are those that would have come, so
    that on the CPU the weights are bit-identical to those of a run that was not cut off. Of several processes each goes
    on with its own random numbers, as long as there are as many as before.

    Lightning adds no checkpoint callback of its own where it finds this one.

    Args:
        folder: Where ``last.ckpt`` goes; ``None`` is ``checkpoints`` in the log folder of each fit.
        every_n_epochs: Epochs between two checkpoints.
        every_n_steps: Also write one after so many optimizer steps; ``None`` does not.

    Raises:
        ValueError: If a number is below 1.
        OSError: If the checkpoint cannot be written; the one before stays.

    Example:
        >>> ResumableRun("runs/pets").folder.name
        'pets'
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, every_n_epochs: int = 1, every_n_steps: int | None = None
    ) -> None:
        if min(every_n_epochs, 1 if every_n_steps is None else every_n_steps) < 1:
            raise ValueError(
                f"every_n_epochs and every_n_steps must be at least 1, got {every_n_epochs} and {every_n_steps}"
            )
        self.folder = None if folder is None else Path(folder)
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self._place = self.folder
        self._ranks = 1
        self._device = torch.device("cpu")
        self._fitting = False
        self._saved_step = -1
        self._signal: int | None = None
        self._is_due = False
        self._random_states: list[dict[str, Any]] | None = None
        self._goes_on = False
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose the folder, the same on all processes, and make it before hours have gone by."""
        self._fitting = stage == "fit"
        self._ranks, self._device = trainer.world_size, trainer.strategy.root_device
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._place = self.folder
        if self._place is None:
            self._place = Path(trainer.strategy.broadcast(trainer.log_dir or trainer.default_root_dir)) / "checkpoints"
        try:
            self._place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"checkpoints cannot be written to {self._place}: {error}; choose another folder") from error

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over signals, and go on with the random numbers of the checkpoint."""
        self._goes_on = self._random_states is not None
        if self._goes_on:
            self._restore_random_state(trainer.global_rank)
            _begin_a_new_epoch_after_a_whole_one(trainer.fit_loop)
            stopped = (isinstance(part, EarlyStopping) and part.stopped_epoch > 0 for part in _callbacks(trainer))
            trainer.should_stop = trainer.should_stop or any(stopped)
        self._saved_step = trainer.global_step
        self._signal = None
        self._previous = heed(self._note)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Accumulate as the epoch asks, which Lightning's scheduler looks up at the start of an epoch alone."""
        if self._goes_on:
            for callback in _callbacks(trainer):
                if isinstance(callback, GradientAccumulationScheduler):
                    callback.on_train_epoch_start(trainer, pl_module)
        self._goes_on = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint where one is due, and end where that was asked for."""
        step, every, between = trainer.global_step, self.every_n_steps, accumulates(trainer.fit_loop)
        if every is not None and step % every == 0 and step != self._saved_step and not between:
            self._is_due = True
        # A run that went on from here would leave out a validation that is due; of an epoch's last batch it belongs to
        # the epoch.
        if trainer.is_last_batch or between or _validates_next(trainer, batch_idx):
            return
        if self._told_to_end(trainer):
            self._end(trainer)
        elif self._is_due:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do the same between two epochs."""
        last = trainer.max_epochs is not None and trainer.current_epoch + 1 >= trainer.max_epochs > 0
        last = last or trainer.global_step == trainer.max_steps
        if self._told_to_end(trainer) and not last:
            self._end(trainer)
        elif last or (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give signals back."""
        self._release()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give signals back."""
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the generators of random numbers, one for each process."""
        own = _random_state(self._device)
        states = [own] * self._ranks
        if self._ranks > 1:  # all of them save together, though one writes
            torch.distributed.all_gather_object(states, own)
        return {"random": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep those states until training starts; a model that is only measured leaves the next fit alone."""
        found = state_dict.get("random")
        if self._fitting and found is not None:
            self._random_states = found if isinstance(found, list) else [found]  # of one process, in older files

    def _restore_random_state(self, rank: int) -> None:
        states, self._random_states = self._random_states or [], None
        if len(states) == self._ranks:
            _set_random_state(states[rank], self._device)
        else:
            rank_zero_warn(
                f"the checkpoint has the random numbers of {len(states)} processes, here are {self._ranks}: training"
                " goes on with others"
            )

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._signal is not None and signum == signal.SIGINT:
            self._previous.get(signum, signal.default_int_handler)(signum, frame)
        self._signal = signum

    def _release(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _told_to_end(self, trainer: L.Trainer) -> bool:
        """Tell whether any process was told to end: all of them have to write the checkpoint together."""
        told = self._signal is not None
        return trainer.strategy.reduce_boolean_decision(told, all=False) if trainer.world_size > 1 else told

    def _end(self, trainer: L.Trainer) -> None:
        raise RunInterruptedError(self._signal or signal.SIGTERM, trainer.global_step, self._save(trainer))

    def _save(self, trainer: L.Trainer) -> Path:
        if self._place is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return Path(LAST)
        self._saved_step, self._is_due = trainer.global_step, False
        path, temporary = self._place / LAST, self._place / f".{LAST}.tmp"
        try:
            trainer.save_checkpoint(temporary, weights_only=False)
            if trainer.is_global_zero:
                # Lightning's own way is atomic within one disk alone, and leaves it to the disk when.
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            kept = f"; {path} is the one before" if path.exists() else ""
            raise OSError(f"the checkpoint {path} cannot be written: {error}{kept}") from error
        trainer.strategy.barrier("checkpoint")
        return path


def _callbacks(trainer: Any) -> list[Any]:
    found: list[Any] = trainer.callbacks
    return found


def _begin_a_new_epoch_after_a_whole_one(loop: Any) -> None:
    """Let a fit with ``max_steps`` go on behind an epoch that was whole, as Lightning does without ``max_steps``.

    With ``max_steps`` it goes through the epoch once more, without a batch, and leaves the order of the next one out.
    """
    current, total = loop.epoch_progress.current, loop.epoch_progress.total
    if not loop.restarting or not current.ready == current.started == current.processed > 0:
        return
    forget_restart(loop, loop.epoch_loop, loop.epoch_loop.val_loop)
    loop.reset_restart_stage()
    current.completed, total.completed = current.processed, total.processed


def _validates_next(trainer: L.Trainer, batch_idx: int) -> bool:
    """Tell whether the trainer goes through the validation data before the next training batch."""
    every = getattr(trainer, "val_check_batch", None)
    if not trainer.enable_validation or every is None or math.isinf(every):
        return False
    by_epoch = trainer.check_val_every_n_epoch
    if by_epoch is None:
        return bool((trainer.fit_loop.total_batch_idx + 1) % every == 0)
    return bool((batch_idx + 1) % every == 0 and (trainer.current_epoch + 1) % by_epoch == 0)


def _random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every generator in tensors and numbers alone: checkpoints are loaded without pickle."""
    _, numbers, gauss = random.getstate()
    kind: Any = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        # Of the device of this process alone: to ask another one for its state takes memory there.
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
        "python": (torch.tensor(numbers, dtype=torch.int64), gauss),
        "numpy": (torch.from_numpy(kind[1].astype(np.int64)), *kind[2:4], float(kind[4])),
    }


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"].cpu())
    cuda: list[Tensor] = state["cuda"]
    if cuda and device.type == "cuda":
        # In older files there is one for each device.
        torch.cuda.set_rng_state(cuda[(device.index or 0) if len(cuda) > 1 else 0].cpu(), device)
    numbers, gauss = state["python"]
    random.setstate((3, tuple(numbers.tolist()), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
