"""All of neural collapse at the penultimate feature, through training, as a Lightning callback."""

from __future__ import annotations

from typing import Any

import torch

from nc_finetune.backbones import PENULTIMATE, LayerChoice, NetworkLayers, choose_layers
from nc_finetune.callbacks._collapse.callback import CollapseCallback, Values
from nc_finetune.callbacks._collapse.figures import draw_measures
from nc_finetune.functional import separation_law
from nc_finetune.functional.measures import MEASURES

_MEASURES = (
    *("nc1", "nc2_equinorm", "nc2_equiangle", "nc2_etf_distance", "nc3_etf_distance", "nc4"),
    *("cdnv", "trace_ratio", "ncc_accuracy"),
)


class CollapseMonitor(CollapseCallback):
    """Follow NC1-NC4 and their relatives at the penultimate feature, and the separation law over the layers.

    Logs, as usable for ``EarlyStopping`` and ``ModelCheckpoint``:

    * ``collapse/<measure>`` of the penultimate feature, for ``nc1``, ``nc2_equinorm``, ``nc2_equiangle``,
      ``nc2_etf_distance``, ``nc3_etf_distance``, ``nc4``, ``cdnv``, ``trace_ratio`` and ``ncc_accuracy``. NC3 and NC4
      are there where the classifier is linear, with ``weight`` ``(K, D)`` and perhaps ``bias``.
    * ``collapse/separation_slope``, the change of ``log(tr Sigma_W / tr Sigma_B)`` a layer, below 0 where layers
      separate the classes more and more, and ``collapse/separation_r_squared``, how straight the line is; over two
      layers or more.
    * ``<split>/collapse/...`` for the second and further splits, ``.../dataloader_idx_<i>`` for further loaders.

    NC4 and nearest-class-centre accuracy look at every sample again once the class means are known: a measurement
    costs two forward passes over the split, also over the validation split. Everything else is as in
    :class:`~nc_finetune.callbacks.LayerwiseNC1`; ``collapse.csv`` and ``collapse_measures.png`` are its files.

    Args:
        layers: The layers that the separation law is fitted to; ``None`` is the stem, every block and the
            penultimate feature. The penultimate feature is measured in any case.
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

    def __init__(self, layers: LayerChoice = None, **options: Any) -> None:
        super().__init__(**options)
        self.layers = layers

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
        named = {f"collapse/{name}": value for name, value in values[PENULTIMATE].items()}
        ratios = [found["trace_ratio"] for found in values.values()]
        if len(ratios) < 2:
            return named
        law = separation_law(torch.tensor(ratios, dtype=torch.float64))
        slope, r_squared = law.slope.item(), law.r_squared.item()
        return {**named, "collapse/separation_slope": slope, "collapse/separation_r_squared": r_squared}

    def draw(self) -> dict[str, Any]:
        """Draw every measure against the step."""
        keys = list(dict.fromkeys(key for row in self.history for key in row if key not in ("epoch", "step")))
        return {"measures": draw_measures(self.history, keys)}
