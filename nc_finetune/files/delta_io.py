"""Deltas where a trainer of Lightning reads and writes checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import CheckpointIO

from nc_finetune.files.delta import apply_delta, read_delta, save_delta

DELTA_SUFFIX = ".safetensors"
# Where a checkpoint says how its model is built.
CHECKPOINT_KEY = "nc_finetune"


def checkpoint_beside(delta: str | os.PathLike[str]) -> str:
    """Return the path of the checkpoint from which a run goes on that wrote a delta."""
    return str(Path(delta).with_suffix(".ckpt"))


def read_and_write_deltas(trainer: L.Trainer, model: Any) -> None:
    """Let the trainer take the path of a delta wherever it takes that of a checkpoint.

    Args:
        trainer: While it sets up.
        model: Its module: anything that :func:`~nc_finetune.save_delta` takes.
    """
    found = trainer.strategy.checkpoint_io
    inner = found.inner if isinstance(found, DeltaIO) else found
    trainer.strategy.checkpoint_io = DeltaIO(trainer, model, inner)


class DeltaIO(CheckpointIO):
    """Reads and writes a delta where the file is a ``.safetensors``; all else is left to another.

    To test, validate or predict, a delta is put onto the model, with all checks of :func:`~nc_finetune.load_delta`.
    A fit goes on from the checkpoint beside it.

    Args:
        trainer: Whose files they are.
        model: Its module.
        inner: Reads and writes everything else.
    """

    def __init__(self, trainer: L.Trainer, model: Any, inner: CheckpointIO) -> None:
        self.trainer = trainer
        self.model = model
        self.inner = inner

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write what is tuned, as the checkpoint has it: averaged, where a callback averages weights."""
        if _is_delta(path):
            save_delta(self.model, path, state=checkpoint["state_dict"])
        else:
            self.inner.save_checkpoint(checkpoint, path, storage_options=storage_options)

    def load_checkpoint(  # type: ignore[override] # weights_only is not in every version
        self, path: Any, map_location: Any = None, **options: Any
    ) -> dict[str, Any]:
        """Read a checkpoint; of a delta, return the model's state once it is there.

        Raises:
            ValueError: If a fit is to go on from a delta without a checkpoint beside it, or the delta does not fit.
            FileNotFoundError: If there is no such delta.
        """
        if not _is_delta(path):
            return self.inner.load_checkpoint(path, map_location, **options)
        if self.trainer.state.fn == "fit":
            return self.inner.load_checkpoint(_resumable(path), map_location, **options)
        delta = read_delta(path)
        described = {CHECKPOINT_KEY: delta.config.to_json()}
        if self.model.method.key_layer == "auto" or self.model.method.key_layer_chosen:
            self.model.on_load_checkpoint(described)  # takes the one that was chosen
        if hasattr(self.model, "taken_head"):
            self.model.taken_head.follow({**described, "state_dict": delta.tensors})
        apply_delta(delta, self.model)
        return {**described, "state_dict": self.model.state_dict(), "pytorch-lightning_version": L.__version__}

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file of either kind."""
        self.inner.remove_checkpoint(path)

    def teardown(self) -> None:
        """Let the other one end."""
        self.inner.teardown()


def _is_delta(path: Any) -> bool:
    return isinstance(path, (str, os.PathLike)) and Path(path).suffix == DELTA_SUFFIX


def _resumable(delta: Any) -> str:
    beside = checkpoint_beside(delta)
    if not Path(beside).is_file():
        raise ValueError(
            f"{delta} has no state of the optimizer to go on from, and there is no {beside}, which"
            " DeltaCheckpoint(resumable=True) writes; to begin a new fit from the delta, load it first:"
            " trainer.fit(load_delta(path))"
        )
    return beside
