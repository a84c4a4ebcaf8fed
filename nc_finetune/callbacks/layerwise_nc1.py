"""NC1 of every layer, as a Lightning callback for anybody's module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nc_finetune.backbones import PENULTIMATE, LayerChoice, NetworkLayers, choose_layers
from nc_finetune.callbacks._collapse.callback import CollapseCallback, Values
from nc_finetune.callbacks._collapse.figures import draw_classes, draw_layers
from nc_finetune.callbacks._collapse.history import CLASS_SPREAD, PAIR_CDNV, class_tables, layer_groups
from nc_finetune.functional.measures import MEASURES
from nc_finetune.functional.variability import Normalize
from nc_finetune.metrics import NeuralCollapse

_SPREAD = "spread / squared distance to the nearest class"


class LayerwiseNC1(CollapseCallback):
    """Measure how far the data have collapsed in every layer, epoch by epoch.

    Works on any ``LightningModule``: ``Trainer(callbacks=[LayerwiseNC1()])``. It finds the blocks of timm, torchvision
    and open_clip networks, and of others that keep their blocks in an ``nn.Sequential`` or ``nn.ModuleList``, or beside
    each other; of a network without blocks, such as a VGG, every linear and convolution layer is measured, before its
    activation. The penultimate feature is what the last ``nn.Linear`` outside the blocks sees. Where it cannot know, it
    asks, before anything runs.

    Logs, for every chosen layer:

    * ``<measure>/<layer>``, such as ``nc1/stem`` (the input of the first block), ``nc1/layer3.0`` and
      ``nc1/penultimate``: usable as ``monitor`` of ``EarlyStopping`` and ``ModelCheckpoint``. Only
      ``nc1/penultimate`` is on the progress bar.
    * ``<split>/<measure>/<layer>`` for the second and further splits.
    * ``.../dataloader_idx_<i>`` for the second and further loaders of a split.

    *Which classes do not collapse* ``by_class=True`` tells, at no further pass: ``class_spread/<class>/<layer>`` is the
    trace of the class's own covariance over its squared distance to the nearest mean
    (:func:`~nc_finetune.functional.class_collapse`), and ``pair_cdnv/<class>|<class>/<layer>`` the CDNV of the five
    pairs that are closest in that layer (:func:`~nc_finetune.functional.pair_cdnv`). They are in :attr:`history` and
    the CSV file, and ``layerwise_nc1_classes.png`` is a heat map of the last; loggers are not given them, being K a
    layer. A class without samples has ``nan``, the others their values.

    Values that could not be had, or are undefined because a class has no samples, features are not finite or class
    means coincide, are ``nan``, with one warning that names layer, batch and reason.

    *The training split* is measured at the end of a training epoch, in a pass of its own over the training data: one
    forward pass, on all ranks, in eval mode, in the trainer's precision, without ``torch.compile``. The trainer says
    ``validating`` then, so that augmentation in ``on_after_batch_transfer`` can stay away. Where samples still come out
    otherwise when they are read again, a warning says so once: give the data without augmentation by
    ``train_dataloader``, or by a datamodule with ``eval_dataloader("train")`` as :class:`~nc_finetune.ImageData`.
    Modes, buffers and random generators are left as they were. Beside ``WeightAveraging`` of Lightning, and
    :class:`~nc_finetune.callbacks.AverageEpochs`, the average is measured, as in validation, so that all values of a
    row are of the model that is validated, saved and left. Where ``ModelCheckpoint`` saves at the end of validation, as
    it does with ``val_check_interval`` other than 1, tell it ``save_on_train_epoch_end=True`` to monitor such a value.

    *The validation and test splits* are measured along their loops, with no extra forward pass: the first run of a
    layer for a batch counts. Samples that a ``DistributedSampler`` repeats count once. With ``samples_per_class``,
    ``pool="flatten"``, or measures that need every sample twice (``nc4``, ``ncc_accuracy``) they get a pass of their
    own, too, over the same batches. So does the last validation where nobody knew that it was the last, as with
    ``EarlyStopping``.

    *Monitored values* are measured in the first epoch, too, or the first after a resume, whatever ``every_n_epochs``
    says: Lightning ends a run where a callback or a schedule monitors what is not there. In epochs that are not
    measured the last value stands: it counts as no improvement, so that ``patience`` is in epochs, not in measurements,
    and a ``ModelCheckpoint`` of such an epoch would bear a value of another: give it the same ``every_n_epochs``.

    *Memory*: a scatter of ``8 D^2`` bytes for each layer. Until 2 D samples have come, the pooled features are kept in
    their precision instead, which takes no more.

    ``callback.history`` and ``layerwise_nc1.csv`` in the log folder have one row for each moment of each run: a further
    fit, validation or test adds rows, and a fit that is resumed goes on after those of its checkpoint. Where weights
    come from a checkpoint to be validated or tested, epoch and step are the checkpoint's. At the end,
    ``layerwise_nc1_nc1.png`` has one line an epoch, and goes to TensorBoard, W&B and MLflow loggers, too.

    Refused are strategies that shard the network (FSDP, model parallelism, DeepSpeed stage 3).

    Args:
        layers: ``None`` for the stem, every block and the penultimate feature; an int n for the last n blocks; or
            a list of names (submodules of the network or of the module, too), patterns such as ``"layer4.*"``, and
            indices of blocks, negative ones from the end.
        every_n_epochs: Measure in each n-th epoch, and in the last; ``None`` is the last alone.
        normalize: ``"none"`` for ``tr(Sigma_W Sigma_B^+)``, ``"classes"`` to divide it by K.
        measures: Keys of :class:`~nc_finetune.NeuralCollapse`; those that need the classifier fit the penultimate
            layer alone.
        by_class: Also measure each class, and find the closest pairs.
        split: ``"train"``, ``"val"``, ``"test"`` or several.
        samples_per_class: Take the first samples of each class alone, up to this number. Compare at equal numbers.
            Where a dataset does not tell its labels, each process takes its share of the first that it comes upon.
        max_batches: Take the first batches alone, of each rank. ``limit_val_batches``, ``limit_test_batches``,
            ``overfit_batches`` and ``fast_dev_run`` of the trainer count, too.
        pool: From a layer's output to a vector. ``"default"`` averages maps over space and takes of tokens the class
            token, or the mean where there is none, and at the stem, where it has seen nothing yet; ``"average"``,
            ``"class_token"``, or ``"flatten"`` for every entry of the output: in memory O(K D), and above 8,192
            entries in two passes.
        num_classes: K; ``None`` takes it from the module, its hyperparameters, the datamodule or the classifier.
        network: Name of the submodule to look into, where the module has several with blocks.
        input_of_classifier: Name of the module whose input is the penultimate feature, e.g. ``"fc"``; ``None``
            finds it.
        train_dataloader: Training data without augmentation, or a function that returns them.
        unpack: Takes a batch and returns ``(inputs, labels)``; the default knows pairs, and mappings with ``image``
            and ``label``, ``pixel_values`` and ``labels`` and the like.
        prefix: Stands in front of every key, to tell two callbacks apart in one trainer, e.g. ``"val/"``.
        strict: Raise :class:`MeasurementError` where otherwise ``nan`` would be recorded.
        figure: Draw the figure at the end (extra ``plot``).
        folder: Where CSV and PNG go; ``None`` is the log folder of the first logger, if there is one.
        options: All from ``split`` on, by name.

    Raises:
        ValueError: At once for an argument out of range; before anything runs for unknown names, a network that
            cannot be told, or a number of classes that is not known.

    Attributes:
        history: One ``{"epoch": ..., "step": ..., "nc1/<layer>": ...}`` for every moment; kept in checkpoints.

    Source:
        Papyan, Han & Donoho 2020, Prevalence of neural collapse, 10.1073/pnas.2015509117.

    Example:
        >>> callback = LayerwiseNC1(layers=["layer4.*", "penultimate"], split="val", samples_per_class=100)
        >>> callback.values
        {}
    """

    def __init__(
        self,
        layers: LayerChoice = None,
        every_n_epochs: int | None = 1,
        normalize: Normalize = "none",
        *,
        measures: Sequence[str] = ("nc1",),
        by_class: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(every_n_epochs=every_n_epochs, normalize=normalize, **options)
        self.layers = layers
        self.measures = tuple(measures)
        if not self.measures:
            raise ValueError("measures must name at least one, got none; the usual one is 'nc1'")
        self.by_class = by_class
        NeuralCollapse(2, 1, normalize, measures=self.measures)  # knows the valid names
        if wrong := [name for name in self.measures if MEASURES[name].by_class]:
            raise ValueError(f"measures are of all classes, and {wrong[0]} has one value a class; say by_class=True")

    @property
    def values(self) -> dict[str, float]:
        """The last measurement: the first measure by layer, in the order of the network; empty before the first."""
        prefix = f"{self.prefix}{self.measures[0]}/"
        last = next((row for row in reversed(self.history) if any(key.startswith(prefix) for key in row)), {})
        return {name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)}

    @property
    def class_values(self) -> dict[str, dict[str, float]]:
        """The last spread of each class, by layer and name, of the first split; empty without ``by_class``."""
        return self._of_first_split(CLASS_SPREAD)

    @property
    def closest_pairs(self) -> dict[str, dict[str, float]]:
        """The last CDNV of the closest pairs, by layer and ``<class>|<class>``; empty without ``by_class``."""
        return self._of_first_split(PAIR_CDNV)

    def _of_first_split(self, measure: str) -> dict[str, dict[str, float]]:
        return class_tables(self.history, measure).get(self.prefix, {})

    @property
    def state_key(self) -> str:
        """Tell several of these callbacks apart in a checkpoint."""
        layers = self.layers if isinstance(self.layers, (int, str, type(None))) else list(self.layers)
        by_class = {"by_class": True} if self.by_class else {}
        return self._generate_state_key(
            **by_class,
            layers=layers,
            every_n_epochs=self.every_n_epochs,
            normalize=self.normalize,
            measures=self.measures,
            splits=self.splits,
            samples_per_class=self.samples_per_class,
            pool=self.pool,
            network=self.network,
            prefix=self.prefix,
        )

    @property
    def file_name(self) -> str:
        """``layerwise_nc1``."""
        return "layerwise_nc1"

    def choose_measures(self, network: NetworkLayers) -> dict[str, tuple[str, ...]]:
        """Give every chosen layer the same measures; those that need the classifier to the penultimate one alone."""
        inner = tuple(name for name in self.measures if not MEASURES[name].needs_classifier)
        layers = choose_layers(network, self.layers)
        by_class = (CLASS_SPREAD, PAIR_CDNV) if self.by_class else ()
        return {layer: (*(self.measures if layer == PENULTIMATE else inner), *by_class) for layer in layers}

    def name_values(self, values: Values) -> dict[str, float]:
        """Name a value ``<measure>/<layer>``, or ``<measure>/<class>/<layer>``."""
        named = {
            f"{measure}/{layer}": value
            for measure in self.measures
            for layer, found in values.items()
            for name, value in found.items()
            if name == measure
        }
        return {**named, **self.name_by_class(values)}

    def draw(self) -> dict[str, Any]:
        """Draw each measure of each split against depth, and the spread of each class."""
        groups = layer_groups(self.history)
        lines = {name: draw_layers(self.history, keys, name) for name, keys in groups.items()}
        tables = class_tables(self.history, CLASS_SPREAD)
        maps = {f"{split}classes": draw_classes(table, _SPREAD) for split, table in tables.items()}
        return {**lines, **maps}
