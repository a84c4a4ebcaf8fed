"""What every comparison should beat, or explain: classifiers that learn next to nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nc_finetune.backbones import PENULTIMATE, Backbone
from nc_finetune.errors import check_name
from nc_finetune.functional.readout import SolvedHead, solve_head
from nc_finetune.functional.reference_heads import (
    solve_nearest_mean,
    solve_neighbors,
    solve_priors,
    votes_of_neighbors,
)
from nc_finetune.methods.base import FinetuningMethod

ControlKind = Literal["class_priors", "mean_color", "nearest_class_mean", "nearest_neighbors"]
_COLORS = 3
_SOLUTIONS: dict[ControlKind, Callable[..., SolvedHead]] = {
    "class_priors": solve_priors,
    "mean_color": solve_head,
    "nearest_class_mean": solve_nearest_mean,
    "nearest_neighbors": solve_neighbors,
}


class Control(FinetuningMethod):
    """Classify by the priors of the classes, the mean colour, the nearest class mean or the nearest neighbours.

    Nothing is trained: one pass over the training images solves the head, and ``Trainer(max_epochs=1).fit`` is all. A
    comparison without such controls does not say how much of an accuracy the data give away.

    Args:
        kind: ``"class_priors"`` looks at nothing and names the most frequent class; ``"mean_color"`` is the
            discriminant of the mean red, green and blue of an image; ``"nearest_class_mean"`` and
            ``"nearest_neighbors"`` (as many as leave-one-out accuracy chooses, weighted) look at the penultimate
            feature, divided by its length.

    Raises:
        ValueError: If the kind is another word.

    Source:
        Nearest class mean: Mensink et al. 2013, 10.1109/TPAMI.2013.83; neighbours: Wu et al. 2018, arXiv:1805.01978.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> Control("mean_color").num_features(TimmBackbone("test_vit", weights=None))
        3
    """

    name: ClassVar[str] = "control"
    label: ClassVar[str] = "control"

    def __init__(self, kind: ControlKind) -> None:
        super().__init__()
        check_name("kind of control", kind, get_args(ControlKind))
        self.kind: ControlKind = kind

    @property
    def trains(self) -> bool:
        """Nothing is trained."""
        return False

    @property
    def own_head(self) -> Callable[[int, int], nn.Module]:
        """A linear layer, or what lets neighbours vote."""
        return NeighborsHead if self.kind == "nearest_neighbors" else nn.Linear

    @property
    def solution(self) -> Callable[..., SolvedHead]:
        """How the head is solved."""
        return _SOLUTIONS[self.kind]

    def tuned_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return nothing: the whole backbone is frozen."""
        return []

    def first_tuned_layer(self, backbone: Backbone) -> str | None:
        """Return ``"penultimate"``; ``None`` where the images themselves are looked at."""
        return None if self.kind == "mean_color" else PENULTIMATE

    def num_features(self, backbone: Backbone) -> int:
        """Return the width of the penultimate feature, or 3."""
        return _COLORS if self.kind == "mean_color" else backbone.num_features

    def features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Return colours, or the penultimate feature, shape ``(N, num_features)``."""
        if self.kind == "mean_color":
            scale = 1.0 if images.is_floating_point() else 255.0
            return images.float().mean((2, 3)) / scale
        features: Tensor = backbone(images)
        return features if self.kind == "class_priors" else F.normalize(features, dim=1)


class NeighborsHead(nn.Module):
    """Let the nearest of the training images vote, at one temperature.

    See :func:`~nc_finetune.functional.reference_heads.votes_of_neighbors`.

    Args:
        in_features: D.
        out_features: K.
    """

    bank: Tensor
    labels: Tensor
    neighbors: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("bank", torch.zeros(1, in_features))
        self.register_buffer("labels", torch.zeros(1, dtype=torch.long))
        self.register_buffer("neighbors", torch.tensor(1))
        self.scale = nn.Parameter(torch.tensor(1.0))  # one over the temperature
        self._number = 1  # of the neighbours, known without a look at the device, and to exporters

    def take_(self, solved: SolvedHead) -> None:
        """Take what :func:`~nc_finetune.functional.reference_heads.solve_neighbors` gave."""
        self.bank = solved.weight.to(self.bank)
        self.labels = solved.bias.to(self.labels)
        self._number = int(solved.chosen["neighbors"])
        self.neighbors = torch.as_tensor(self._number, device=self.bank.device)
        with torch.no_grad():
            self.scale.fill_(1 / solved.temperature)

    def make_room_(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        """Make room for as many images as a file holds."""
        for name in ("bank", "labels"):
            if (given := tensors.get(f"{prefix}{name}")) is not None:
                setattr(self, name, getattr(self, name).new_zeros(given.shape))
        if (number := tensors.get(f"{prefix}neighbors")) is not None:
            self._number = int(number)

    def forward(self, features: Tensor) -> Tensor:
        """Return logarithms of shares of the votes over the temperature, shape ``(N, K)``."""
        with torch.autocast(features.device.type, enabled=False):  # neighbours are those that leave-one-out saw
            features = features.to(self.bank.dtype)
            votes = votes_of_neighbors(features, self.bank, self.labels, self.out_features, self._number)
            return self.scale * votes

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self.make_room_(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)
