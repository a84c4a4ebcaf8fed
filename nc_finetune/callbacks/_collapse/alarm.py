"""What in a history of measurements says that a fit goes wrong, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from nc_finetune.callbacks._collapse.history import Row

_LOST = 0.4  # of the largest effective rank; the lowest of fits that learned something was 0.54
_TOUCHING = 2.0  # that two means are so close by chance is rare; the largest of fits with right labels was 0.7
_SPREAD, _COLLAPSED = 0.15, 0.1  # of CDNV; with right labels that of validation rose by 0.02 at most
_NAMED = 3


def lost_rank(history: Sequence[Row], key: str) -> str | None:
    """Say whether class means have lost most of the directions in which they lay apart.

    Args:
        history: Rows, the last of them the newest.
        key: Of the effective rank in these.

    Returns:
        A sentence; ``None`` where all is well.

    Example:
        >>> lost_rank([{"rank": 6.0}, {"rank": 1.5}], "rank")
        'the class means lie along 1.5 directions by now, and lay along 6.0 before (effective rank)'
    """
    values = [row[key] for row in history if row.get(key, 0.0) >= 1]  # nan is not
    if not values or values[-1] >= _LOST * max(values):
        return None
    return (
        f"the class means lie along {values[-1]:.1f} directions by now, and lay along {max(values):.1f} before"
        " (effective rank)"
    )


def coinciding(overlaps: Sequence[Mapping[str, float]]) -> str | None:
    """Say which class means have coincided twice running, as far as their samples tell.

    Args:
        overlaps: Of the closest pairs by name, measurement by measurement, see
            :func:`~nc_finetune.functional.pair_overlap`.

    Returns:
        A sentence; ``None`` where all is well.

    Example:
        >>> coinciding([{"cat|dog": 3.5, "cat|owl": 0.2}, {"cat|dog": 4.2}])
        'the means of cat and dog lie closer than chance alone would put them'
        >>> coinciding([{"cat|dog": 3.5}])
    """
    if len(overlaps) < 2:
        return None
    found = [pair for pair in _touching(overlaps[-1]) if pair in set(_touching(overlaps[-2]))]
    if not found:
        return None
    pairs = ", of ".join(" and ".join(pair.split("|")) for pair in found[:_NAMED])
    return f"the means of {pairs} lie closer than chance alone would put them"


def _touching(overlaps: Mapping[str, float]) -> Iterator[str]:
    return (pair for pair, value in overlaps.items() if value > _TOUCHING)


def parted(history: Sequence[Row], train: str, validation: str) -> str | None:
    """Say whether classes go on to collapse on training images while they spread on those of the validation split.

    Args:
        history: Rows, the last of them the newest.
        train: Key of the training split's CDNV.
        validation: Of the validation split's.

    Returns:
        A sentence; ``None`` where all is well, or one of the two is not measured.

    Example:
        >>> rows = [{"t": 2.0, "v": 2.0, "epoch": 1}, {"t": 1.0, "v": 2.5, "epoch": 2}]
        >>> parted(rows, "t", "v")
        'since epoch 1 training images have collapsed from a CDNV of 2.00 to 1.00, and those of validation spread ...'
    """
    rows = [row for row in history if row.get(train, 0.0) > 0 and row.get(validation, 0.0) > 0]
    if not rows:
        return None
    last, best = rows[-1], min(rows, key=lambda row: row[validation])
    if last[validation] < (1 + _SPREAD) * best[validation] or last[train] > (1 - _COLLAPSED) * best[train]:
        return None
    return (
        f"since epoch {best['epoch']:.0f} training images have collapsed from a CDNV of {best[train]:.2f} to"
        f" {last[train]:.2f}, and those of validation spread from {best[validation]:.2f} to {last[validation]:.2f}"
    )
