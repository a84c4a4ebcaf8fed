"""All of neural collapse at the penultimate feature, through training, as a Lightning callback."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from nc_finetune.backbones import PENULTIMATE, LayerChoice, NetworkLayers, choose_layers
from nc_finetune.callbacks._collapse.alarm import coinciding, lost_rank, parted
from nc_finetune.callbacks._collapse.callback import CollapseCallback, Values
from nc_finetune.callbacks._collapse.figures import draw_measures
from nc_finetune.callbacks._collapse.history import PAIR_OVERLAP, class_tables, is_by_class
from nc_finetune.functional import separation_law
from nc_finetune.functional.measures import MEASURES

_MEASURES = (
    *("nc1", "nc2_equinorm", "nc2_equiangle", "nc2_etf_distance", "nc3_etf_distance", "nc4"),
    *("cdnv", "trace_ratio", "ncc_accuracy", "effective_rank", PAIR_OVERLAP),
)


class CollapseMonitor(CollapseCallback):
    """Follow NC1-NC4 and their relatives at the penultimate feature, and the separation law over the layers.

    Logs, as usable for ``EarlyStopping`` and ``ModelCheckpoint``:

    * ``collapse/<measure>`` of the penultimate feature, for ``nc1``, ``nc2_equinorm``, ``nc2_equiangle``,
      ``nc2_etf_distance``, ``nc3_etf_distance``, ``nc4``, ``cdnv``, ``trace_ratio``, ``ncc_accuracy`` and
      ``effective_rank``. NC3 and NC4 are there where the classifier is linear, with ``weight`` ``(K, D)`` and perhaps
      ``bias``.
    * ``collapse/separation_slope``, the change of ``log(tr Sigma_W / tr Sigma_B)`` a layer, below 0 where layers
      separate the classes more and more, and ``collapse/separation_r_squared``, how straight the line is; over two
      layers or more.
    * ``<split>/collapse/...`` for the second and further splits, ``.../dataloader_idx_<i>`` for further loaders.

    NC4 and nearest-class-centre accuracy look at every sample again once the class means are known: a measurement
    costs two forward passes over the split, also over the validation split. Everything else is as in
    :class:`~nc_finetune.callbacks.LayerwiseNC1`; ``collapse.csv`` and ``collapse_measures.png`` are its files.

    *The alarm* warns during a fit, once of each and in words, when

    * the class means lose directions: their effective rank falls below 0.4 of the largest that the fit had before;
    * class means coincide: twice running two of them lie closer, in squared distance, than half of what chance alone
      would put between them (:func:`~nc_finetune.functional.pair_overlap`; the five closest pairs are in
      :attr:`history` and the CSV file as ``pair_overlap/<class>|<class>/penultimate``);
    * with ``split=["train", "val"]``, training collapse parts from validation collapse: CDNV of the validation images
      lies 15 % above its smallest value, and that of the training images has fallen by 10 % since.

    The first two are of the first split; rows of earlier fits do not count. Of CIFAR-10 with 5 images a class a full
    fine-tuning at too high a rate lost its directions by the seventh epoch; of fits of digits and CIFAR-10 with right
    labels none would have given an alarm. The third is what its words say, and no forecast: where 40 % of the labels
    were wrong, validation accuracy fell before it (digits), or not at all (CIFAR-10). To stop in time, monitor
    ``val/accuracy``.

    Args:
        layers: The layers that the separation law is fitted to; ``None`` is the stem, every block and the
            penultimate feature. The penultimate feature is measured in any case.
        alarm: Whether to warn.
        options: As for :class:`~nc_finetune.callbacks.LayerwiseNC1`: ``split``, ``every_n_epochs``, ``normalize``,
            ``samples_per_class``, ``max_batches``, ``pool``, ``num_classes``, ``network``, ``input_of_classifier``,
            ``train_dataloader``, ``unpack``, ``prefix``, ``strict``, ``figure`` and ``folder``.

    Raises:
        ValueError: As there; also where no classifier is found.

    Source:
        Papyan, Han & Donoho 2020, 10.1073/pnas.2015509117; He & Su 2023, A law of data separation in deep learning,
        10.1073/pnas.2221704120.

    Example:
        >>> CollapseMonitor(split="val", every_n_epochs=5).history
        []
    """

    def __init__(self, layers: LayerChoice = None, *, alarm: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.layers = layers
        self.alarm = alarm

    @property
    def state_key(self) -> str:
        """Tell several of these callbacks apart in a checkpoint."""
        layers = self.layers if isinstance(self.layers, (int, str, type(None))) else list(self.layers)
        settings = {"layers": layers, "splits": self.splits, "every_n_epochs": self.every_n_epochs}
        return self._generate_state_key(**settings, prefix=self.prefix)

    @property
    def file_name(self) -> str:
        """``collapse``."""
        return "collapse"

    def choose_measures(self, network: NetworkLayers) -> dict[str, tuple[str, ...]]:
        """All measures of the penultimate feature, the trace ratio of the others."""
        layers = dict.fromkeys((*choose_layers(network, self.layers), *choose_layers(network, PENULTIMATE)))
        weight = getattr(network.classifier, "weight", None)
        is_linear = isinstance(weight, torch.Tensor) and weight.ndim == 2 and len(weight) == self._known_classes
        full = tuple(name for name in _MEASURES if is_linear or not MEASURES[name].needs_classifier)
        return {layer: full if layer == PENULTIMATE else ("trace_ratio",) for layer in layers}

    def name_values(self, values: Values) -> dict[str, float]:
        """Name a value ``collapse/<measure>``."""
        scalars = {name: value for name, value in values[PENULTIMATE].items() if name in MEASURES}
        named = {f"collapse/{name}": value for name, value in scalars.items() if not MEASURES[name].by_class}
        named |= self.name_by_class(values)
        ratios = [found["trace_ratio"] for found in values.values()]
        if len(ratios) < 2:
            return named
        law = separation_law(torch.tensor(ratios, dtype=torch.float64))
        slope, r_squared = law.slope.item(), law.r_squared.item()
        return {**named, "collapse/separation_slope": slope, "collapse/separation_r_squared": r_squared}

    def look_at_history(self) -> None:
        """Warn, once of each, where something goes wrong."""
        if not self.alarm:
            return
        rank, cdnv = f"{self.prefix}collapse/effective_rank", "collapse/cdnv"
        rows = self.history[self._first_row :]
        tables = (class_tables([row], PAIR_OVERLAP).get(self.prefix, {}) for row in rows)
        found = {
            "lost rank": lost_rank(rows, rank),
            "coinciding": coinciding([table[PENULTIMATE] for table in tables if PENULTIMATE in table]),
        }
        if {"train", "val"} <= set(self.splits):
            keys = [f"{self._prefix_of(split)}{cdnv}" for split in ("train", "val")]
            found["parted"] = parted(rows, *keys)
        for name, sentence in found.items():
            if sentence is not None and ("alarm", name) not in self._warned:
                self._warned.add(("alarm", name))
                epoch = rows[-1]["epoch"]
                warnings.warn(f"{type(self).__name__}, epoch {epoch:.0f}: {sentence}.", stacklevel=2)

    def draw(self) -> dict[str, Any]:
        """Draw every measure against the step."""
        found = (key for row in self.history for key in row if not is_by_class(key))
        keys = [key for key in dict.fromkeys(found) if key not in ("epoch", "step")]
        return {"measures": draw_measures(self.history, keys)}
