"""Accuracy where classes are uneven."""

from __future__ import annotations

from statistics import fmean

from nc_finetune.results.result import Result

ACCURACY = "accuracy"
# The largest test class may have this many times the images of the smallest before recalls are averaged, too.
_EVEN = 1.5


def _recalls(matrix: list[list[int]]) -> list[float]:
    """Recall of each true class that has images, in per cent."""
    return [100 * row[label] / sum(row) for label, row in enumerate(matrix) if sum(row)]


def balanced_accuracy(run: Result) -> float | None:
    """Average the recall over classes: what accuracy would be if every class had as many test images.

    Returns:
        In per cent; ``None`` where it is not known, or images have several labels.

    Example:
        >>> run = Result(
        ...     run_id="r", backbone="b", weights=None, dataset="d", method="m", confusion=["0:9 1:1", "0:1 1:1"]
        ... )
        >>> balanced_accuracy(run), has_uneven_classes(run)
        (70.0, True)
    """
    if run.balanced_accuracy is not None:
        return run.balanced_accuracy
    recalls = _recalls(run.confusion_matrix())  # of records that are older than the field
    return fmean(recalls) if recalls else None


def has_uneven_classes(run: Result) -> bool:
    """Say whether accuracy tells too little: whether the largest test class has 1.5 times the images of the smallest.

    Returns:
        Whether it has; ``False`` where no confusion was recorded.
    """
    sizes = [size for size in map(sum, run.confusion_matrix()) if size]
    return bool(sizes) and max(sizes) > _EVEN * min(sizes)
