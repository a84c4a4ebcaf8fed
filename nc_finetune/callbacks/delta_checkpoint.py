"""Delta files while a model trains."""

from __future__ import annotations

import os
import re
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import ModelCheckpoint, ModelPruning
from torch import Tensor

from nc_finetune._common.lightning_internals import OF_MODEL_CHECKPOINT, logged_names, require
from nc_finetune.files.delta import record_base
from nc_finetune.files.delta_io import DELTA_SUFFIX, checkpoint_beside, read_and_write_deltas
from nc_finetune.passes.evaluation import refuse_sharded

# Not in every version of Lightning.
_AVERAGING: tuple[type[Any], ...] = tuple(filter(None, [getattr(callbacks, "WeightAveraging", None)]))


class DeltaCheckpoint(ModelCheckpoint):
    """Save what is tuned, in place of whole checkpoints: see :func:`~nc_finetune.save_delta`.

    A ``ModelCheckpoint`` of Lightning, which decides when and which: by default after every epoch, of which the last is
    kept. What it offers goes for deltas, too: ``trainer.test(ckpt_path="best")``, ``best_model_path``, loggers that
    upload files. Class names and the size of the images come from the datamodule, where it knows them. Before the fit
    the weights of the backbone are hashed, which takes about 1 ms a megabyte, and the file names the hash.

    Where a callback averages the weights (``WeightAveraging``, ``EMAWeightAveraging``), the average is saved as it was
    validated: at the end of the validation, unless the metric is one of training.

    A fit that ends without any file, since no epoch or step was due, writes the last state.

    A delta has no optimizer state. To resume a run that was cut off pass ``resumable=True``, or use an ordinary
    ``ModelCheckpoint`` beside this callback: Lightning adds none by itself where it finds this one. Outside of a
    trainer :func:`~nc_finetune.load_delta` reads the files.

    Args:
        dirpath: Folder; ``None`` is where Lightning puts checkpoints.
        filename: Name without its end, with metrics to be filled in: ``"{epoch}-{val/accuracy:.2f}"`` becomes
            ``epoch=3-val_accuracy=0.91.safetensors``.
        monitor: Logged metric by which the best are kept; ``None`` keeps the last.
        mode: Whether the metric is best at its ``"min"`` or ``"max"``.
        save_top_k: How many of the best to keep; -1 keeps all, 0 none.
        save_last: Write ``last.safetensors`` as well; ``"link"`` makes it a link.
        every_n_epochs: Epochs between two files; ``None`` is 1, unless steps or a time are given.
        resumable: Write an ordinary checkpoint of the same name, with the optimizer, beside every delta:
            ``trainer.fit(model, ckpt_path=...)`` goes on from there, be it given the one or the other.
        every_n_train_steps: Optimizer steps between two files, in place of epochs.
        train_time_interval: Time between two files, in place of epochs.
        verbose: Say what was saved, and why.
        auto_insert_metric_name: Write the name of a metric before its value in the file's name, with ``_`` for ``/``.
        save_on_train_epoch_end: Save at the end of the training epoch, or (``False``) of the validation.
        save_on_exception: Save when the fit ends with an exception, too.
        enable_version_counter: Write a second file beside one of the same name, in place of writing over it.

    Raises:
        ValueError: Before the fit, if the strategy shards the network, or layers are pruned meanwhile.

    Example:
        >>> DeltaCheckpoint("runs/pets", monitor="val/accuracy", mode="max").format_checkpoint_name({}, "best")
        '...runs/pets/best.safetensors'
        >>> DeltaCheckpoint().format_checkpoint_name({"epoch": 3, "val/accuracy": 0.914}, "{epoch}-{val/accuracy:.2f}")
        'epoch=3-val_accuracy=0.91.safetensors'
    """

    FILE_EXTENSION = DELTA_SUFFIX

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        save_last: bool | Literal["link"] | None = None,
        every_n_epochs: int | None = None,
        resumable: bool = False,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        verbose: bool = False,
        auto_insert_metric_name: bool = True,
        save_on_train_epoch_end: bool | None = None,
        save_on_exception: bool = False,
        enable_version_counter: bool = True,
    ) -> None:
        super().__init__(
            None if dirpath is None else Path(dirpath),
            filename,
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            save_last=save_last,
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            train_time_interval=train_time_interval,
            verbose=verbose,
            auto_insert_metric_name=auto_insert_metric_name,
            save_on_train_epoch_end=save_on_train_epoch_end,
            save_on_exception=save_on_exception,
            enable_version_counter=enable_version_counter,
        )
        require(ModelCheckpoint, *OF_MODEL_CHECKPOINT)
        require(self, "_last_global_step_saved", "_save_on_train_epoch_end")
        self.resumable = resumable
        self._last_global_step_saved = -1  # a fit may change a model without a step, as ProbePath does
        self._saved = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Hash the weights before they are tuned; refuse those that are in shares, or are to be pruned."""
        refuse_sharded(trainer, type(self).__name__)
        found: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, ModelPruning) for callback in found):
            raise ValueError(
                f"{type(self).__name__} cannot write layers that ModelPruning takes apart; call save_delta after"
                " the fit"
            )
        super().setup(trainer, pl_module, stage)
        read_and_write_deltas(trainer, pl_module)
        if stage == "fit":
            record_base(pl_module)
            self._saved = False

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last state where nothing has been saved."""
        super().on_train_end(trainer, pl_module)
        if self._saved or self.save_top_k == 0 or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        candidates = self._monitor_candidates(trainer)
        if self.monitor is None or self.monitor in candidates:
            self._save_topk_checkpoint(trainer, candidates)
            return
        warnings.warn(
            f"{type(self).__name__}: {self.monitor!r} was never logged; the last state is saved without it",
            stacklevel=2,
        )
        self._save_none_monitor_checkpoint(trainer, candidates)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing with files of before, although this fit writes into another folder, as a new log is."""
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})
        self._saved = self.monitor is not None and bool(self.best_model_path)

    def _should_save_on_train_epoch_end(self, trainer: L.Trainer) -> bool:
        """Save an average when it has been validated: the end of the epoch may bring the next one."""
        at_epoch_end = super()._should_save_on_train_epoch_end(trainer)
        averaged = any(isinstance(callback, _AVERAGING) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if self._save_on_train_epoch_end is not None or not averaged or not any(trainer.num_val_batches):
            return at_epoch_end
        validated = logged_names(trainer.fit_loop.epoch_loop.val_loop)
        return at_epoch_end and self.monitor is not None and self.monitor not in validated

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._saved = True
        if self.resumable:
            trainer.save_checkpoint(checkpoint_beside(filepath))

    def _link_checkpoint(self, trainer: L.Trainer, filepath: str, linkpath: str) -> None:  # type: ignore[override]
        super()._link_checkpoint(trainer, filepath, linkpath)
        if self.resumable:
            super()._link_checkpoint(trainer, checkpoint_beside(filepath), checkpoint_beside(linkpath))

    def _remove_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._remove_checkpoint(trainer, filepath)
        trainer.strategy.remove_checkpoint(checkpoint_beside(filepath))

    def _should_remove_checkpoint(self, trainer: L.Trainer, previous: str, current: str) -> bool:
        """Keep what the fit goes on from, also where the checkpoint beside a delta was given."""
        resumed = trainer.ckpt_path is not None and Path(trainer.ckpt_path) == Path(checkpoint_beside(previous))
        return not resumed and super()._should_remove_checkpoint(trainer, previous, current)

    def _format_checkpoint_name(
        self,
        filename: str | None,
        metrics: dict[str, Tensor],
        prefix: str | None = None,
        auto_insert_metric_name: bool = True,
    ) -> str:
        """Write names of metrics as part of the file's: Lightning would take their slash for a folder."""
        template = filename or self.CHECKPOINT_JOIN_CHAR.join(("{epoch}", "{step}"))
        if auto_insert_metric_name:
            named = re.compile(r"\{([^{}:]*)")
            template = named.sub(
                lambda found: f"{found[1].replace('/', '_')}{self.CHECKPOINT_EQUALS_CHAR}{found[0]}", template
            )
        return super()._format_checkpoint_name(template, metrics, prefix, auto_insert_metric_name=False)
