"""Delta files while a model trains."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from nc_finetune.callbacks.evaluation import refuse_sharded
from nc_finetune.delta_file import record_base, save_delta


class DeltaCheckpoint(ModelCheckpoint):
    """Save what is tuned, in place of whole checkpoints: see :func:`~nc_finetune.save_delta`.

    Lightning's ``ModelCheckpoint`` decides when and which: by default after every epoch, of which the last is kept.
    Class names and the size of the images come from the datamodule, where it knows them. Before the fit the weights of
    the backbone are hashed, which takes about 1 ms a megabyte, and the file names the hash.

    A delta has no optimizer state. To resume a run that was cut off pass ``resumable=True``, or use an ordinary
    ``ModelCheckpoint`` beside this callback: Lightning adds none by itself where it finds this one. Files of deltas
    are loaded with :func:`~nc_finetune.load_delta`, not with ``ckpt_path``.

    Args:
        dirpath: Folder; ``None`` is where Lightning puts checkpoints.
        filename: Name without its end, with metrics to be filled in: ``"{epoch}-{val/accuracy:.2f}"``.
        monitor: Logged metric by which the best are kept; ``None`` keeps the last.
        mode: Whether the metric is best at its ``"min"`` or ``"max"``.
        save_top_k: How many of the best to keep; -1 keeps all, 0 none.
        save_last: Write ``last.safetensors`` as well.
        every_n_epochs: Epochs between two files.
        resumable: Write an ordinary checkpoint of the same name, with the optimizer, beside every delta:
            ``trainer.fit(model, ckpt_path="....ckpt")`` goes on from there.

    Example:
        >>> DeltaCheckpoint("runs/pets", monitor="val/accuracy", mode="max").format_checkpoint_name({}, "best")
        '...runs/pets/best.safetensors'
    """

    FILE_EXTENSION = ".safetensors"

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        save_last: bool | None = None,
        every_n_epochs: int = 1,
        resumable: bool = False,
    ) -> None:
        super().__init__(
            None if dirpath is None else Path(dirpath),
            filename,
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            save_last=save_last,
            every_n_epochs=every_n_epochs,
        )
        self.resumable = resumable

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Hash the weights before they are tuned; refuse those that are in shares."""
        refuse_sharded(trainer, type(self).__name__)
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            record_base(pl_module)

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        if trainer.is_global_zero:
            save_delta(trainer.lightning_module, filepath)
        if self.resumable:
            trainer.save_checkpoint(_beside(filepath))
        trainer.strategy.barrier()
        # What ModelCheckpoint's own method notes, so that one state is not saved twice.
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath

    def _remove_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._remove_checkpoint(trainer, filepath)
        trainer.strategy.remove_checkpoint(_beside(filepath))


def _beside(delta: str) -> str:
    return str(Path(delta).with_suffix(".ckpt"))
