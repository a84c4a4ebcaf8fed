"""A pass over the training images, and the linear head that their features give: for callbacks that solve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from nc_finetune.backbones import PENULTIMATE
from nc_finetune.callbacks._feature_sums import FeatureSums, Gathered
from nc_finetune.callbacks._solving import feature_batches
from nc_finetune.functional.class_statistics import MAX_SCATTER_FEATURES
from nc_finetune.functional.readout import ColumnChoice, SolvedHead, choose_columns, solve_head, warn_of_few
from nc_finetune.methods import FinetuningMethod, LayerReadout

PREFERRED = "later_half"


@dataclass(frozen=True)
class Seen:
    """What a head is to be solved from.

    Attributes:
        groups: Columns of the features by name, among which one is chosen.
        widths: Width of the part of each layer, in order.
        how: Shrinkage and priors.
        solve: From features, labels and the number of classes to the head; ``None`` is the discriminant.
    """

    groups: dict[str, Tensor]
    widths: dict[str, int]
    how: dict[str, Any]
    solve: Callable[..., SolvedHead] | None = None

    @classmethod
    def by(cls, method: FinetuningMethod, backbone: Any, settings: Any) -> Seen:
        """Return what a method gives to its head.

        Args:
            method: The method.
            backbone: The network.
            settings: Has ``shrinkage`` and ``priors``; or the method itself, where it says how its head is solved.
        """
        if isinstance(method, LayerReadout):
            how = {"shrinkage": settings.shrinkage, "priors": settings.priors}
            return cls(method.columns(backbone), method.widths(backbone), how)
        width = method.num_features(backbone)
        given = {"given": torch.arange(width)}, {PENULTIMATE: width}
        if method.solution is not None and settings is method:
            return cls(*given, {}, method.solution)
        return cls(*given, {"shrinkage": settings.shrinkage, "priors": settings.priors})

    @property
    def num_features(self) -> int:
        """Number of all columns."""
        return sum(self.widths.values())


def gather_features(
    trainer: L.Trainer, model: Any, seen: Seen, loader: Any, features: Callable[[Any], Tensor] | None = None
) -> Gathered:
    """Pass the share of this process through the network, and return what all have found.

    Args:
        trainer: At the start or the end of its training.
        model: Its module.
        seen: What comes out.
        loader: Of the training images.
        features: From inputs to features; ``None`` is what the head sees.

    Raises:
        ValueError: If there are too many features, and too wide ones.
    """
    rank, ranks = trainer.global_rank, trainer.world_size

    def narrow() -> Tensor:
        return seen.groups[widest(seen.groups)]

    sums = FeatureSums(seen.num_features, model.num_classes, narrow, rank, ranks, device=model.device)
    for found, labels in feature_batches(trainer, model, loader, rank, ranks, features):
        sums.add(found, labels)
    return sums.gather()


def solve_gathered(gathered: Gathered, seen: Seen, num_classes: int) -> tuple[ColumnChoice | None, SolvedHead]:
    """Choose among the groups of columns, where there are several, and solve the head on one.

    Args:
        gathered: What :func:`gather_features` returned.
        seen: What that is.
        num_classes: K.

    Returns:
        The choice, ``None`` where there was none, and the head.

    Raises:
        ValueError: If features are not finite, or as :func:`~nc_finetune.functional.readout.solve_head`.
    """
    groups, how, solve = seen.groups, seen.how, seen.solve or solve_head
    features, labels, statistics = gathered
    if statistics is not None:
        _check_finite(statistics.means, groups[widest(groups)], seen.widths)
        choice = ColumnChoice(widest(groups), {}, 0) if len(groups) > 1 else None
        return choice, solve(statistics, labels, num_classes, samples=features, **how)
    _check_finite(features, torch.arange(seen.num_features), seen.widths)
    if len(groups) == 1:
        return None, solve(features, labels, num_classes, **how)
    choice = choose_columns(features, labels, num_classes, groups, PREFERRED, **how)
    if choice.head is None:
        return choice, solve_head(features[:, groups[choice.name]], labels, num_classes, **how)
    warn_of_few(features, labels, num_classes, how["shrinkage"])
    return replace(choice, head=None), choice.head


def widest(groups: Mapping[str, Tensor]) -> str:
    """Return the group that a scatter has room for: the preferred one, or the widest.

    Raises:
        ValueError: If there is room for none.
    """
    fitting = {name: len(columns) for name, columns in groups.items() if len(columns) <= MAX_SCATTER_FEATURES}
    if not fitting:
        raise ValueError(
            f"so many images need layers of at most {MAX_SCATTER_FEATURES} features together, these have"
            f" {min(map(len, groups.values()))}; name fewer layers, or pool by 'mean' alone"
        )
    return PREFERRED if PREFERRED in fitting else max(fitting, key=lambda name: fitting[name])


def _check_finite(values: Tensor, columns: Tensor, widths: Mapping[str, int]) -> None:
    """Refuse features that are not finite, by the name of their layer."""
    low, high = values.aminmax(dim=0) if len(values) else (columns.float(), columns.float())
    bad = ~(
        low.isfinite() & high.isfinite()
    )  # both are nan where a value is: nothing of the size of all values is made
    if not bad.any():
        return
    place, ends = int(columns[int(bad.nonzero()[0])]), torch.tensor(list(widths.values())).cumsum(0)
    layer = list(widths)[int((ends <= place).sum())]
    raise ValueError(
        f"features of layer {layer!r} must be finite, got nan or infinity; look for broken images, leave the layer out,"
        " or run in another precision"
    )
