"""What a run of a benchmark measures of its features."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from nc_finetune.backbones import PENULTIMATE, NetworkLayers
from nc_finetune.callbacks import LayerwiseNC1
from nc_finetune.functional import multilabel_collapse
from nc_finetune.functional.variability import Normalize
from nc_finetune.passes.batches import unpack_batch
from nc_finetune.passes.evaluation import evaluating
from nc_finetune.passes.measured_data import loaders_of_split

_OF_FEATURES = ("nc1", "nc2_equinorm", "nc2_equiangle", "nc2_etf_distance", "nc2_of_distance")
_OF_CLASSIFIER = ("nc3_etf_distance", "nc4")


class RunCollapse(LayerwiseNC1):
    """Measure, in the last epoch, NC1 of every layer, and NC1-NC4 and each class of what the classifier sees.

    NC3 and NC4 are there where the decision of the head is linear in the feature: where it has a ``weight``.

    Args:
        normalize: Convention of NC1.

    Example:
        >>> RunCollapse("classes").collapse
        {}
    """

    def __init__(self, normalize: Normalize = "none", **options: Any) -> None:
        options = {"by_class": True, **options}
        super().__init__(None, None, normalize, measures=(*_OF_FEATURES, *_OF_CLASSIFIER), **options)

    def choose_measures(self, network: NetworkLayers) -> dict[str, tuple[str, ...]]:
        """NC1 of every layer, all measures of the penultimate one."""
        linear = isinstance(getattr(network.classifier, "weight", None), torch.Tensor)
        given = super().choose_measures(network)[PENULTIMATE]
        last = tuple(name for name in given if linear or name not in _OF_CLASSIFIER)
        return {layer: last if layer == PENULTIMATE else ("nc1",) for layer in network.layer_names}

    @property
    def collapse(self) -> dict[str, float]:
        """The measures of what the classifier sees, by name; empty before the measurement."""
        last = self.history[-1] if self.history else {}
        end = f"/{PENULTIMATE}"
        return {name: float(last[f"{name}{end}"]) for name in self.measures if f"{name}{end}" in last}


class MultilabelRunCollapse(RunCollapse):
    """The same of the images that have one label alone, and how all of those with labels have collapsed together.

    Everything is undefined where a label never stands alone.

    Args:
        normalize: Convention of NC1.

    Source:
        Li et al. 2023, Neural collapse in multi-label learning with pick-all-label loss, arXiv:2310.15903.
    """

    def __init__(self, normalize: Normalize = "none") -> None:
        super().__init__(normalize, unpack=_with_one_label, by_class=False)
        self._together: dict[str, float] = {}

    @property
    def collapse(self) -> dict[str, float]:
        """Also ``multilabel_variability``, ``multilabel_etf_distance`` and ``multilabel_scaled_average``."""
        return {**super().collapse, **self._together}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pass the training split through the network once more, and measure sets of labels."""
        super().on_train_end(trainer, pl_module)
        features, labels = _features(trainer, pl_module)
        labelled = labels.any(dim=1)
        try:
            found = multilabel_collapse(features[labelled], labels[labelled])
        except ValueError:  # a label never stands alone; the warning on NC1 names it
            return
        self._together = {f"multilabel_{name}": value.item() for name, value in found._asdict().items()}


def _with_one_label(batch: Any) -> tuple[Any, Tensor]:
    images, labels = unpack_batch(batch)
    alone = labels.sum(dim=1) == 1
    return images[alone], labels[alone].argmax(dim=1)


@torch.no_grad()
def _features(trainer: L.Trainer, model: Any) -> tuple[Tensor, Tensor]:
    """Return what the classifier sees of the training images, in eval mode, and their labels."""
    (loader,) = loaders_of_split(trainer, "train")
    found: list[tuple[Tensor, Tensor]] = []
    with evaluating(trainer, model):
        for batch in loader:
            images, labels = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            found.append((model.features(images).float().cpu(), labels.cpu()))
    return torch.cat([part for part, _ in found]), torch.cat([part for _, part in found])
