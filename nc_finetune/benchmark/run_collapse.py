"""What a run of a benchmark measures of its features."""

from __future__ import annotations

import torch

from nc_finetune.backbones import PENULTIMATE, NetworkLayers
from nc_finetune.callbacks import LayerwiseNC1
from nc_finetune.functional.variability import Normalize

_OF_FEATURES = ("nc1", "nc2_equinorm", "nc2_equiangle", "nc2_etf_distance", "nc2_of_distance")
_OF_CLASSIFIER = ("nc3_etf_distance", "nc4")


class RunCollapse(LayerwiseNC1):
    """Measure, in the last epoch, NC1 of every layer and NC1-NC4 of what the classifier sees.

    NC3 and NC4 are there where the decision of the head is linear in the feature: where it has a ``weight``.

    Args:
        normalize: Convention of NC1.

    Example:
        >>> RunCollapse("classes").collapse
        {}
    """

    def __init__(self, normalize: Normalize = "none") -> None:
        super().__init__(None, None, normalize, measures=(*_OF_FEATURES, *_OF_CLASSIFIER))

    def choose_measures(self, network: NetworkLayers) -> dict[str, tuple[str, ...]]:
        """NC1 of every layer, all measures of the penultimate one."""
        linear = isinstance(getattr(network.classifier, "weight", None), torch.Tensor)
        last = (*_OF_FEATURES, *(_OF_CLASSIFIER if linear else ()))
        return {layer: last if layer == PENULTIMATE else ("nc1",) for layer in network.layer_names}

    @property
    def collapse(self) -> dict[str, float]:
        """The measures of what the classifier sees, by name; empty before the measurement."""
        last = self.history[-1] if self.history else {}
        end = f"/{PENULTIMATE}"
        return {key.removesuffix(end): float(value) for key, value in last.items() if key.endswith(end)}
