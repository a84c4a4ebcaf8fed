"""What runs must share for their accuracies to be compared, and how that is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nc_finetune.report._tables.score import ACCURACY
from nc_finetune.results.result import Result

_PARTS = ("dataset", "network", "size")  # of the name of a group
Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Group:
    """What runs must share for their accuracies to be compared.

    Attributes:
        dataset: Name of the data set.
        backbone: Name of the architecture.
        weights: The weights that the runs started from; ``None`` is random initialisation.
        samples_per_class: Training images a class; ``None`` is the whole training split, or a share of it.
        train_share: Share of the training split; ``None`` is all of it, or a number a class.
        measure: What accuracies of the group are, in words.
    """

    dataset: str
    backbone: str
    weights: str | None
    samples_per_class: int | None
    train_share: float | None = None
    measure: str = ACCURACY

    @property
    def label(self) -> str:
        """The group in words.

        Example:
            >>> Group(dataset="digits", backbone="resnet18", weights=None, samples_per_class=10).label
            'digits · resnet18 (random initialisation) · 10 images a class'
        """
        return _joined(self, _PARTS)

    @property
    def network(self) -> str:
        """Backbone and weights in words."""
        return f"{self.backbone} ({self.weights or 'random initialisation'})"

    @property
    def series(self) -> str:
        """Data set and network in words: what groups of several training sizes share."""
        return f"{self.dataset} · {self.network}"

    @property
    def size(self) -> str:
        """The training size in words."""
        if self.samples_per_class is not None:
            return f"{self.samples_per_class} images a class"
        return "whole training split" if self.train_share is None else f"{100 * self.train_share:g} % of training split"


def group_of(run: Result) -> Group:
    """Say which group a run belongs to."""
    return Group(
        dataset=run.dataset,
        backbone=run.backbone,
        weights=run.weights,
        samples_per_class=run.samples_per_class,
        train_share=run.train_share,
        measure=run.measure,
    )


def group_order(group: Group) -> tuple[object, ...]:
    """Sort by data set, backbone, weights and training size, the whole split last."""
    size = math.inf if group.samples_per_class is None else group.samples_per_class
    return group.dataset, group.backbone, group.weights or "", size, group.train_share or 1.0, group.measure


def finite(values: Iterable[float | None]) -> list[float]:
    """Leave out what was not measured or is not a number.

    Example:
        >>> finite([1.0, None, float("nan"), 2.0])
        [1.0, 2.0]
    """
    return [value for value in values if value is not None and math.isfinite(value)]


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Gather items by a key, in the order in which they come.

    Example:
        >>> grouped([1, 2, 3], lambda number: number % 2)
        {1: [1, 3], 0: [2]}
    """
    found: dict[Key, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def _varying(groups: Iterable[Group]) -> tuple[list[Group], list[str]]:
    """Return the distinct groups and the names of what differs between them."""
    distinct = list(dict.fromkeys(groups))
    varying = [part for part in _PARTS if len({getattr(group, part) for group in distinct}) > 1]
    if len({group.weights for group in distinct}) == 1:
        varying = ["backbone" if part == "network" else part for part in varying]
    return distinct, varying


def setting_names(groups: Iterable[Group]) -> dict[Group, str]:
    """Name groups by what sets them apart, for tables and sentences about all of them.

    Returns:
        Name by group, in order; a lone group has its full name.

    Example:
        >>> digits = Group(dataset="digits", backbone="resnet18", weights=None, samples_per_class=5)
        >>> faces = Group(dataset="faces", backbone="resnet18", weights=None, samples_per_class=5)
        >>> list(setting_names([digits, faces]).values()), common_words([digits, faces])
        (['digits', 'faces'], 'All on resnet18 (random initialisation) · 5 images a class.')
    """
    distinct, varying = _varying(groups)
    return {group: _joined(group, varying or _PARTS) for group in distinct}


def common_words(groups: Iterable[Group]) -> str:
    """Say what groups have in common, which :func:`setting_names` leaves out.

    Returns:
        A sentence; empty where there is nothing to say.
    """
    distinct, varying = _varying(groups)
    common = [part for part in _PARTS if part not in varying and not (part == "network" and "backbone" in varying)]
    return f"All on {_joined(distinct[0], common)}." if varying and common else ""


def _joined(group: Group, parts: Sequence[str]) -> str:
    return " · ".join(getattr(group, part) for part in parts)
