"""The measures of collapse by name: what each needs, and its value from what was seen of the samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from nc_finetune.functional.between_class import Between
from nc_finetune.functional.class_statistics import ClassStatistics
from nc_finetune.functional.collapse_by_class import class_spread, pair_cdnv_of, pair_overlap
from nc_finetune.functional.self_duality import nc3_etf_distance, nc3_of_distance
from nc_finetune.functional.simplex_etf import (
    effective_rank,
    nc2_equiangle,
    nc2_equinorm,
    nc2_etf_distance,
    nc2_of_distance,
)
from nc_finetune.functional.undefined import warn_undefined
from nc_finetune.functional.variability import (
    Normalize,
    _cdnv_compute,
    _h_score_compute,
    _nc1_compute,
    _trace_ratio_compute,
    _vci_compute,
)


class Seen(NamedTuple):
    """What one pass over the samples, or two, have left of them."""

    statistics: ClassStatistics
    normalize: Normalize
    between: Between
    weight: Tensor  # rows of the classifier, (K, D); empty where there is none
    projected: Tensor | None  # spread in the whitened space from a second pass; None where there is a scatter
    correct: Tensor  # samples of the second pass that are nearest to the mean of their own class
    disagreeing: Tensor  # those that the classifier takes for another class than the nearest mean does
    decided: Tensor  # all of them


class Measure(NamedTuple):
    """How a measure is computed, a scalar in float64 unless it is by class, and what of a pass it needs for that."""

    value: Callable[[Seen], Tensor]
    needs_scatter: bool = False
    needs_classifier: bool = False
    needs_second_pass: bool = False  # to look at every sample again once the class means are known
    by_class: bool = False  # a value for each class, or for each pair of them


def _share(measure: str, number: Tensor, of: Tensor) -> Tensor:
    if number.isnan():
        warn_undefined(measure, "features of the second pass, or the classifier, are not finite")
    return number / of


MEASURES = {
    "nc1": Measure(lambda seen: _nc1_compute(seen.statistics, seen.normalize, seen.between, seen.projected)),
    "trace_ratio": Measure(lambda seen: _trace_ratio_compute(seen.statistics, seen.between)),
    "cdnv": Measure(lambda seen: _cdnv_compute(seen.statistics)),
    "class_spread": Measure(lambda seen: class_spread(seen.statistics).spread, by_class=True),
    "pair_cdnv": Measure(lambda seen: pair_cdnv_of(seen.statistics), by_class=True),
    "pair_overlap": Measure(lambda seen: pair_overlap(seen.statistics), by_class=True),
    "vci": Measure(lambda seen: _vci_compute(seen.statistics), needs_scatter=True),
    "h_score": Measure(lambda seen: _h_score_compute(seen.statistics), needs_scatter=True),
    "effective_rank": Measure(lambda seen: effective_rank(seen.statistics.means)),
    "nc2_equinorm": Measure(lambda seen: nc2_equinorm(seen.statistics.means)),
    "nc2_equiangle": Measure(lambda seen: nc2_equiangle(seen.statistics.means)),
    "nc2_etf_distance": Measure(lambda seen: nc2_etf_distance(seen.statistics.means)),
    "nc2_of_distance": Measure(lambda seen: nc2_of_distance(seen.statistics.means)),
    "nc3_etf_distance": Measure(
        lambda seen: nc3_etf_distance(seen.weight, seen.statistics.means), needs_classifier=True
    ),
    "nc3_of_distance": Measure(lambda seen: nc3_of_distance(seen.weight, seen.statistics.means), needs_classifier=True),
    "nc4": Measure(
        lambda seen: _share("NC4", seen.disagreeing, seen.decided), needs_classifier=True, needs_second_pass=True
    ),
    "ncc_accuracy": Measure(lambda seen: _share("NCC accuracy", seen.correct, seen.decided), needs_second_pass=True),
}
