"""What is to be known of splits beside their images: what they lack, and what they share."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from nc_finetune.data.columns.split_names import SPLIT_NAMES
from nc_finetune.data.sources.tables import Source
from nc_finetune.data.splits.content_hashes import Duplicate, find_duplicates
from nc_finetune.data.splits.file import SplitRows
from nc_finetune.data.splits.groups import group_names, shared_groups
from nc_finetune.data.splits.plan import SplitPlan
from nc_finetune.errors import DataWarning

_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """What is to be known of the splits of some data, ready for a record of a run.

    Attributes:
        images: Images of each split.
        absent_classes: By split, the names of the classes of which it has no image; splits that have all are left out.
        duplicates: Images that are in two splits.
        unlabelled: Images of the source that have no label.
        groups: Number of groups; ``None`` where splits are not by group.
        shared_groups: Groups that are in two splits, and which these are.
    """

    images: dict[str, int]
    absent_classes: dict[str, list[str]]
    duplicates: int
    unlabelled: int
    groups: int | None
    shared_groups: dict[str, tuple[str, ...]]


class PlannedSplits:
    """The splits of a source as a plan draws them, and what is to be known of them; each is found when asked for."""

    def __init__(self, source: Source, plan: SplitPlan) -> None:
        self.source = source
        self.plan = plan

    @cached_property
    def rows(self) -> SplitRows:
        """The table of the source that each split is in, and its rows there; says which classes train lacks."""
        rows = self.plan.rows(self.source)
        _warn_of_absent_classes(absent_classes(self.source, rows))
        return rows

    @cached_property
    def duplicates(self) -> list[Duplicate]:
        """Images that are in two splits, file by file."""
        tables = self.source.splits
        return find_duplicates(
            {split: (tables[self.rows[split][0]], self.rows[split][1].tolist()) for split in SPLIT_NAMES}
        )

    @cached_property
    def groups(self) -> dict[str, list[str]] | None:
        """The group of each row of the source's tables; ``None`` where splits are not by group."""
        return None if self.plan.group is None else group_names(self.source, self.plan.group)

    @cached_property
    def shared_groups(self) -> dict[str, tuple[str, ...]]:
        """Groups that are in two splits, and which these are: of splits that the source brings along."""
        return {} if self.groups is None else shared_groups(self.groups, self.rows)

    @property
    def summary(self) -> SplitSummary:
        """All of it."""
        groups = self.groups
        return SplitSummary(
            images={split: len(self.rows[split][1]) for split in SPLIT_NAMES},
            absent_classes=absent_classes(self.source, self.rows),
            duplicates=len(self.duplicates),
            unlabelled=sum(len(images.rows) for images in self.source.unlabelled.values()),
            groups=None if groups is None else len({name for names in groups.values() for name in names}),
            shared_groups=self.shared_groups,
        )

    def warn_of_duplicates(self) -> None:
        """Name some of the images that are in two splits, if there are any."""
        if self.duplicates:
            first = "\n".join(f"  {found}" for found in self.duplicates[:3])
            warnings.warn(f"{len(self.duplicates)} images are in two splits, e.g.\n{first}", DataWarning, stacklevel=3)

    def refuse_shared_groups(self) -> None:
        """Refuse to train where a group is on two sides.

        Raises:
            ValueError: If there is one.
        """
        if not self.shared_groups:
            return
        said = [f"{name!r} ({' and '.join(splits)})" for name, splits in list(self.shared_groups.items())[:5]]
        raise ValueError(
            f"{len(self.shared_groups)} groups of group={self.plan.group!r} are in two splits that the source brings"
            f" along, e.g. {', '.join(said)}; move their images into one split, or leave group out to take the"
            " splits as they are"
        )


def absent_classes(source: Source, rows: SplitRows) -> dict[str, list[str]]:
    """Return the names of the classes that each split lacks; splits that have all, or are empty, are left out."""
    found = {}
    for split, (name, indices) in rows.items():
        if not len(indices):
            continue
        table = source.splits[name]
        present = {label for row in indices for label in table.labels_of(row)}
        if lacking := [name for label, name in enumerate(source.class_names) if label not in present]:
            found[split] = lacking
    return found


def _warn_of_absent_classes(absent: Mapping[str, Sequence[str]]) -> None:
    """Say which classes have no training image: nothing is learnt of them, and NC1 has no value for them."""
    if "train" not in absent:
        return
    others = [f"{split} lacks {_shown(names)}" for split, names in absent.items() if split != "train"]
    warnings.warn(
        f"{len(absent['train'])} classes have no training image: {_shown(absent['train'])}"
        f"{''.join('; ' + other for other in others)}",
        DataWarning,
        stacklevel=2,
    )


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
