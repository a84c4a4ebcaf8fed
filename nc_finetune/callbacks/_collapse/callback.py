"""What every callback shares that measures collapse while others train: when, on which data, and where values go."""

from __future__ import annotations

import math
import os
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
from torch import nn

from nc_finetune._common.data_facts import told_by
from nc_finetune.backbones import PENULTIMATE, NetworkLayers, Pooling, find_network_layers
from nc_finetune.callbacks._collapse.averaged import averages_in_place, unknown_averages
from nc_finetune.callbacks._collapse.history import LOADER_SUFFIX, Row, add_row, is_by_class
from nc_finetune.callbacks._collapse.loop_ride import LoopRide
from nc_finetune.callbacks._collapse.measurement import Measurement, MeasurementError
from nc_finetune.callbacks._collapse.output import HistoryOutput
from nc_finetune.callbacks._collapse.own_pass import OwnPass
from nc_finetune.errors import check_name
from nc_finetune.functional.measures import MEASURES
from nc_finetune.functional.variability import Normalize
from nc_finetune.metrics import NeuralCollapse
from nc_finetune.passes.batches import Unpack, unpack_batch
from nc_finetune.passes.evaluation import refuse_sharded
from nc_finetune.passes.measured_data import LoaderSource, loaders_of_split
from nc_finetune.passes.repeats import warn_of_differences

Split = Literal["train", "val", "test"]
Values = dict[str, dict[str, float]]


class CollapseCallback(L.Callback):
    """Measure layers of anybody's module and keep what comes out; subclasses say which layers and which measures.

    The arguments are those that :class:`~nc_finetune.callbacks.LayerwiseNC1` and
    :class:`~nc_finetune.callbacks.CollapseMonitor` have in common, and are described there.
    """

    def __init__(
        self,
        *,
        split: Split | Sequence[Split] = "train",
        every_n_epochs: int | None = 1,
        normalize: Normalize = "none",
        samples_per_class: int | None = None,
        max_batches: int | None = None,
        pool: Pooling = "default",
        num_classes: int | None = None,
        network: str | None = None,
        input_of_classifier: str | None = None,
        train_dataloader: LoaderSource | None = None,
        unpack: Unpack = unpack_batch,
        prefix: str = "",
        strict: bool = False,
        figure: bool = True,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.splits: tuple[str, ...] = (split,) if isinstance(split, str) else tuple(split)
        self.every_n_epochs = every_n_epochs
        self.normalize: Normalize = normalize
        self.samples_per_class = samples_per_class
        self.max_batches = max_batches
        self.pool: Pooling = pool
        self.num_classes = num_classes
        self.network = network
        self.input_of_classifier = input_of_classifier
        self.train_dataloader = train_dataloader
        self.unpack = unpack
        self.prefix = prefix
        self.strict = strict
        self.history: list[Row] = []
        self._output = HistoryOutput(self.file_name, None if folder is None else Path(folder), figure, strict)
        self._check_arguments()
        self._found: NetworkLayers | None = None
        self._measures: dict[str, tuple[str, ...]] = {}
        self._known_classes = 0
        self._class_names: list[str] = []
        self._passed_over: list[str] = []  # splits that were there since they were last measured, but not due
        self._recorded = False
        self._looked = False
        self._stage = "fit"
        self._first_row = 0  # of this run
        self._loaded: tuple[int, int] | None = None  # the moment of weights that are only measured
        self._loop: str | None = None  # the split of the loop that runs, if it is measured
        self._ride: LoopRide | None = None
        self._warned: set[tuple[str, str]] = set()

    def _check_arguments(self) -> None:
        numbers = {"every_n_epochs": self.every_n_epochs, "samples_per_class": self.samples_per_class}
        for name, value in {**numbers, "max_batches": self.max_batches}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.num_classes is not None and self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}")
        if not self.splits:
            raise ValueError("split must name at least one of train, val, test, got none")
        for name in self.splits:
            check_name("split", name, get_args(Split))
        check_name("pooling", self.pool, get_args(Pooling))

    # What a subclass decides.

    @abstractmethod
    def choose_measures(self, network: NetworkLayers) -> dict[str, tuple[str, ...]]:
        """Say which measures are taken of which layers, in the order of the network.

        Raises:
            ValueError: If a layer that the user named is unknown.
        """

    @abstractmethod
    def name_values(self, values: Values) -> dict[str, float]:
        """Name the measures by layer of one split as they are kept, without the split."""

    def name_by_class(self, values: Values) -> dict[str, float]:
        """Name what is of single classes, or pairs of them, ``<measure>/<class>/<layer>``."""
        parts = (
            (*name.partition("/"), layer, value)
            for layer, found in values.items()
            for name, value in found.items()
            if "/" in name
        )
        return {
            f"{measure}/{'|'.join(self._class_names[int(label)] for label in labels.split('|'))}/{layer}": value
            for measure, _, labels, layer, value in parts
        }

    def look_at_history(self) -> None:
        """Called on the first process after each row of a fit."""

    @abstractmethod
    def draw(self) -> dict[str, Any]:
        """Draw the history: figures by name."""

    @property
    @abstractmethod
    def file_name(self) -> str:
        """Name of the CSV file, without its suffix."""

    # When.

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse strategies that shard the network, and other callbacks that would log to the same keys."""
        refuse_sharded(trainer, type(self).__name__)
        self._check_keys(trainer)
        self._found = None
        self._passed_over.clear()
        self._recorded = self._looked = False
        self._warned.clear()
        self._stage, self._first_row, self._loaded = stage, len(self.history), None
        self._output.begin_run()

    def _check_keys(self, trainer: L.Trainer) -> None:
        """Refuse to mix what is measured differently; Lightning would log the mean of the two."""
        callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
        alike = [other for other in callbacks if isinstance(other, CollapseCallback) and type(other) is type(self)]
        if any(other.prefix == self.prefix and other._settings() != self._settings() for other in alike):
            raise ValueError(
                f"several {type(self).__name__} would log different values to the same keys; let one measure several"
                " splits, or tell them apart by prefix, e.g. prefix='val/'"
            )

    def _settings(self) -> tuple[Any, ...]:
        where = (self.splits, self.network, self.input_of_classifier, self.train_dataloader)
        return (*where, self.normalize, self.samples_per_class, self.max_batches, self.pool, self.num_classes)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find network and layers before anything runs; what the user named must be there."""
        self._resolve(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the training split if this epoch is due, or the last."""
        if self._is_wanted(trainer, "train"):
            everybody: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
            values = self._measure_averaged(trainer, pl_module, "train", everybody)
            self._log(pl_module, self._record(trainer, trainer.current_epoch, values))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure what was passed over in an epoch that nobody knew to be the last, as ``EarlyStopping`` makes it."""
        to_come = self._around(trainer)[1]  # those that had their turn have left their average in the module
        for split in self._passed_over:
            values = self._measure_averaged(trainer, pl_module, split, to_come)
            values = self._record(trainer, trainer.current_epoch - 1, values)  # the trainer has counted it already
            for logger in trainer.loggers:
                logger.log_metrics(_logged(values), step=trainer.global_step)
        self._passed_over.clear()

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hold the hooks while a validation or test loop runs that is to be measured."""
        self._release()
        split = "test" if trainer.testing else "val"
        self._loop = split if not trainer.sanity_checking and self._is_wanted(trainer, split) else None
        if self._loop is None:
            return
        self._resolve(trainer, pl_module)
        if self._can_ride():
            self._ride = LoopRide(
                pl_module,
                loaders_of_split(trainer, split),
                partial(self._new_measurement, trainer, pl_module),
                unpack=self.unpack,
                max_batches=self.max_batches,
            )

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take the labels of the batch that comes."""
        if self._ride is not None:
            self._ride.begin_batch(batch, batch_idx, dataloader_idx)

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        """Let go of the batch."""
        if self._ride is not None:
            self._ride.end_batch()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compute, log and keep what the loop brought."""
        ride, split = self._ride, self._loop
        self._release()
        if split is None:
            return
        if ride is None:
            # Those that had their turn have taken their average out again; no test puts one in.
            gone = [] if split == "test" else self._around(trainer)[0]
            values = self._measure_averaged(trainer, pl_module, split, gone)
        else:
            values = self._name(split, [(m, m.compute()) for m in ride.measurements])
        self._log(pl_module, self._record(trainer, trainer.current_epoch, values))

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remove the hooks; the figure shows what there is."""
        self._release()
        self._write_figures(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove the hooks and draw the figure."""
        self._release()
        self._write_figures(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Keep the history in checkpoints, and where the rows of this run begin."""
        return {"history": self.history, "first_row": self._first_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history of the run that goes on; what is only measured, or tested, leaves that of its run alone."""
        if self._stage == "fit":
            self.history = list(state_dict["history"])
            self._first_row = state_dict.get("first_row", 0)  # older checkpoints do not say
            self._output.begin_run(resumed=True)
        elif not self.history:
            self.history = list(state_dict["history"])
            self._first_row = len(self.history)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note of which moment the weights are that are measured."""
        if self._stage != "fit":
            self._loaded = checkpoint["epoch"], checkpoint["global_step"]

    def measure(self, trainer: L.Trainer, pl_module: L.LightningModule, split: Split = "train") -> dict[str, float]:
        """Pass a split through the network and return what would be logged; nothing is logged or kept.

        It is of the weights that the module has at that moment, also where a callback averages them.

        Args:
            trainer: One that is fitting, validating or testing.
            pl_module: Its module.
            split: Which of its data.

        Raises:
            MeasurementError: If ``strict`` and something could not be measured.
        """
        self._resolve(trainer, pl_module)
        return self._measure(trainer, pl_module, split)

    def _is_wanted(self, trainer: L.Trainer, split: str) -> bool:
        """Tell whether to measure a split now, and remember it if that is only too early."""
        if split not in self.splits:
            return False
        self._passed_over = [other for other in self._passed_over if other != split]
        due = self._is_due(trainer) or self._is_awaited(trainer, split)
        if not due:
            self._passed_over.append(split)
        return due

    def _is_due(self, trainer: L.Trainer) -> bool:
        if trainer.state.fn != "fit":
            return True
        epoch = trainer.current_epoch + 1
        last = trainer.should_stop or epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps
        return last or bool(self.every_n_epochs and epoch % self.every_n_epochs == 0)

    def _is_awaited(self, trainer: L.Trainer, split: str) -> bool:
        """Tell whether somebody monitors a value that has never been there, in which case Lightning ends the run."""
        if trainer.state.fn != "fit" or self._found is None:
            return False
        monitors = {LOADER_SUFFIX.sub("", key) for key in _monitored(trainer) if key not in trainer.callback_metrics}
        return bool(monitors and monitors & set(self._keys(split)))

    def _keys(self, split: str) -> list[str]:
        values = {layer: dict.fromkeys(names, math.nan) for layer, names in self._measures.items()}
        return [f"{self._prefix_of(split)}{key}" for key in self.name_values(values)]

    # What.

    def _resolve(self, trainer: L.Trainer, pl_module: L.LightningModule) -> NetworkLayers:
        if self._found is None or self._found.root is not pl_module:
            known = self.num_classes or _known_classes(trainer, pl_module)
            found = find_network_layers(pl_module, self.network, self.input_of_classifier, known)
            known = known or _rows_of(found.classifier)
            if known is None:
                raise ValueError(
                    "the number of classes is not known: neither module nor datamodule has num_classes, and no linear"
                    f" classifier was found; pass num_classes= to {type(self).__name__}"
                )
            self._found, self._known_classes = found, max(2, int(known))  # one logit tells two classes apart
            names = told_by(trainer).class_names()
            fit = names is not None and len(names) == self._known_classes
            self._class_names = list(map(str, names if fit and names else range(self._known_classes)))
            self._measures = self.choose_measures(found)
        return self._found

    def _new_measurement(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Measurement:
        def make_metric(width: int, measures: tuple[str, ...], scatter: bool) -> NeuralCollapse:
            return NeuralCollapse(self._known_classes, width, self.normalize, measures=measures, scatter=scatter)

        network = self._resolve(trainer, pl_module)
        return Measurement(
            network, self._measures, self._known_classes, make_metric, pooling=self.pool, device=pl_module.device
        )

    def _can_ride(self) -> bool:
        """Tell whether one look at each sample is enough, and all samples are wanted."""
        twice = any(MEASURES[name].needs_second_pass for names in self._measures.values() for name in names)
        return not twice and self.pool != "flatten" and self.samples_per_class is None

    def _release(self) -> None:
        if self._ride is not None:
            self._ride.close()
            self._ride = None

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule, split: str) -> dict[str, float]:
        """Measure a split in a pass of its own."""
        try:
            loaders = loaders_of_split(trainer, split, self.train_dataloader)
        except Exception as error:  # the same on all ranks
            failed = self._new_measurement(trainer, pl_module)
            failed.fail(str(error), error)
            return self._name(split, [(failed, failed.compute())])
        if split == "train" and not self._looked:
            self._looked = True
            for loader in loaders:
                warn_of_differences(trainer, pl_module, loader, type(self).__name__)
        own_pass = OwnPass(
            trainer,
            pl_module,
            unpack=self.unpack,
            num_classes=self._known_classes,
            samples_per_class=self.samples_per_class,
            max_batches=self.max_batches,
        )
        measurements = [self._new_measurement(trainer, pl_module) for _ in loaders]
        pairs = enumerate(zip(measurements, loaders, strict=True))
        return self._name(split, [(m, own_pass.run(m, loader, split, number)) for number, (m, loader) in pairs])

    def _measure_averaged(
        self, trainer: L.Trainer, pl_module: L.LightningModule, split: str, callbacks: Sequence[L.Callback]
    ) -> dict[str, float]:
        """Measure a split in a pass of its own, on the averages of the weights that callbacks would validate."""
        if split != "test":
            self._warn_of_averages(trainer, split)
        with averages_in_place(trainer, pl_module, callbacks):
            return self._measure(trainer, pl_module, split)

    def _around(self, trainer: L.Trainer) -> tuple[list[L.Callback], list[L.Callback]]:
        """Return the callbacks that have their turn before this one, and those that have it after."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        place = next((place for place, other in enumerate(callbacks) if other is self), len(callbacks))
        return callbacks[:place], callbacks[place + 1 :]

    def _warn_of_averages(self, trainer: L.Trainer, split: str) -> None:
        names = unknown_averages(trainer.callbacks)  # type: ignore[attr-defined]
        if new := [name for name in names if ("average", name) not in self._warned]:
            self._warned |= {("average", name) for name in new}
            warnings.warn(
                f"{type(self).__name__} measures the {split} split on the weights that the module has at that moment,"
                f" and {', '.join(new)} may validate an average of them: a row may then be of two models; Lightning's"
                " WeightAveraging and AverageEpochs are known",
                stacklevel=2,
            )

    # Where to.

    def _name(self, split: str, measured: Sequence[tuple[Measurement, Values]]) -> dict[str, float]:
        named: dict[str, float] = {}
        for number, (measurement, values) in enumerate(measured):
            suffix = f"/dataloader_idx_{number}" if number else ""
            prefix = self._prefix_of(split)
            named.update({f"{prefix}{key}{suffix}": value for key, value in self.name_values(values).items()})
            self._report(split, measurement)
        return named

    def _prefix_of(self, split: str) -> str:
        return self.prefix if split == self.splits[0] else f"{self.prefix}{split}/"

    def _report(self, split: str, measurement: Measurement) -> None:
        problems = measurement.problems
        by_reason: dict[str, list[str]] = {}
        for layer, reason in problems.items():
            by_reason.setdefault(reason, []).append(layer)
        told = "; ".join(f"layer {', '.join(layers)}: {reason}" for reason, layers in by_reason.items())
        message = f"{type(self).__name__} on the {split} split could not measure {told}"
        if problems and self.strict:
            raise MeasurementError(message) from measurement.cause
        if new := {(split, layer) for layer in problems} - self._warned:
            self._warned |= new
            warnings.warn(f"{message}; nan is recorded there, and this warning is not repeated.", stacklevel=2)

    def _record(self, trainer: L.Trainer, epoch: int, values: Mapping[str, float]) -> dict[str, float]:
        moment = self._loaded or (epoch, trainer.global_step)
        add_row(self.history, *moment, values, first=self._first_row)
        self._recorded = True
        self._output.write_table(trainer, self, self.history)
        if trainer.is_global_zero and trainer.state.fn == "fit":
            self.look_at_history()
        return dict(values)

    def _log(self, pl_module: L.LightningModule, values: Mapping[str, float]) -> None:
        for key, value in _logged(values).items():
            shown = key == f"{self.prefix}nc1/{PENULTIMATE}"
            pl_module.log(key, value, prog_bar=shown, sync_dist=True, batch_size=1, add_dataloader_idx=False)

    def _write_figures(self, trainer: L.Trainer) -> None:
        if self._recorded:
            self._output.hand_over_table(trainer, self, self.history)
            self._output.write_figures(trainer, self, int(self.history[-1]["step"]), self.draw)


def _logged(values: Mapping[str, float]) -> dict[str, float]:
    """Leave out what is of single classes: loggers and the trainer would be given thousands of numbers."""
    return {key: value for key, value in values.items() if not is_by_class(key)}


def _monitored(trainer: L.Trainer) -> set[str]:
    """Return the keys that callbacks and schedules of the trainer look at."""
    holders: Iterable[Any] = (*trainer.callbacks, *trainer.lr_scheduler_configs)  # type: ignore[attr-defined]
    return {key for holder in holders if isinstance(key := getattr(holder, "monitor", None), str)}


def _known_classes(trainer: L.Trainer, pl_module: L.LightningModule) -> int | None:
    facts = told_by(trainer)
    own = (getattr(holder, "num_classes", None) for holder in (pl_module, pl_module.hparams))
    names = facts.class_names()
    found = (*own, facts.num_classes, None if names is None else len(names))
    return next((value for value in found if isinstance(value, int) and value >= 2), None)


def _rows_of(classifier: nn.Module | None) -> int | None:
    parts = [] if classifier is None else list(classifier.modules())[::-1]
    rows = (getattr(part, "out_features", getattr(part, "out_channels", None)) for part in parts)
    return next((value for value in rows if isinstance(value, int)), None)
