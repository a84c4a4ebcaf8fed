"""The neural-collapse measures as one torchmetrics metric over one shared state."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from nc_finetune.errors import check_name
from nc_finetune.functional.between_class import Between, undefined_reason
from nc_finetune.functional.class_statistics import (
    MAX_SCATTER_FEATURES,
    ClassStatistics,
    as_labels,
    check_features,
    empty_class_statistics,
    merge_class_statistics,
    sum_class_statistics,
    update_class_statistics_,
)
from nc_finetune.functional.measures import MEASURES, Seen
from nc_finetune.functional.nearest_class_center import agreement, classifier_decisions, nearest_or_none
from nc_finetune.functional.undefined import nan_like
from nc_finetune.functional.variability import Normalize, projected_spread, whitener

_SECOND_PASS_SUMS = ("projected", "correct", "disagreeing", "decided")
_OF_THE_PASS = ("_centres", "_projector", "_update_count", "_computed", "_to_sync", "_enable_grad")


def _sum_over_ranks(gather: Callable[..., list[Tensor]], group: Any, value: Tensor) -> Tensor:
    """Sum a tensor over ranks; by one all-reduce unless torchmetrics was given a way of its own to gather."""
    if gather is not gather_all_tensors:
        return torch.stack(gather(value, group=group)).sum(dim=0)
    total = value.clone()
    torch.distributed.all_reduce(total, group=group)
    return total


class NeuralCollapse(Metric):
    """Measure how far features have collapsed to their class means, exactly, in one pass over the data.

    One state serves all measures: class counts and spreads ``(K,)``, class means ``(K, D)`` and within-class scatter
    ``(D, D)``, in float64, however many samples are seen; 8 (2 K + K D + D^2) bytes. Features of any floating dtype
    are accumulated in float64, which neither autocast nor TF32 touches. ``update`` makes no device-to-host copy. Over
    ranks the sums are reduced by Chan's formula: no rank gathers those of the others.

    The keys of ``compute()`` are those of ``measures``:

    ====================  =====================================================  ==============
    key                   what it is                                             collapsed
    ====================  =====================================================  ==============
    ``nc1``               :func:`nc_finetune.functional.nc1`                     0
    ``trace_ratio``       :func:`nc_finetune.functional.trace_ratio`             0
    ``cdnv``              :func:`nc_finetune.functional.cdnv`                    0
    ``vci``               :func:`nc_finetune.functional.vci`                     0
    ``h_score``           :func:`nc_finetune.functional.h_score`                 rank Sigma_B
    ``effective_rank``    :func:`nc_finetune.functional.effective_rank`          K - 1
    ``nc2_equinorm``      :func:`nc_finetune.functional.nc2_equinorm`            0
    ``nc2_equiangle``     :func:`nc_finetune.functional.nc2_equiangle`           0
    ``nc2_etf_distance``  :func:`nc_finetune.functional.nc2_etf_distance`        0
    ``nc2_of_distance``   :func:`nc_finetune.functional.nc2_of_distance`         0 (bias-free)
    ``nc3_etf_distance``  :func:`nc_finetune.functional.nc3_etf_distance`; C     0
    ``nc3_of_distance``   :func:`nc_finetune.functional.nc3_of_distance`; C      0 (bias-free)
    ``nc4``               :func:`nc_finetune.functional.nc4`; C, 2               0
    ``ncc_accuracy``      :func:`nc_finetune.functional.ncc_accuracy`; 2         1
    ``class_spread``      :func:`nc_finetune.functional.class_collapse`; K       0
    ``pair_cdnv``         :func:`nc_finetune.functional.pair_cdnv`; K            0
    ``pair_overlap``      :func:`nc_finetune.functional.pair_overlap`; K         0
    ====================  =====================================================  ==============

    C: needs :meth:`set_classifier`. 2: looks at every sample again once the class means are known, in a second pass:
    after the first, call :meth:`begin_second_pass` and update with the same data. K: only where it is asked for; a
    value for each class, shape ``(K,)``, or pair of classes, ``(K, K)``, ``nan`` for those without samples alone.
    Features wider than 8,192 have no scatter: for them ``nc1`` needs the second pass, too, in memory O(K D), and
    ``vci`` and ``h_score`` cannot be had.

    Args:
        num_classes: K, at least 2.
        num_features: D, the width of the features, at least 1.
        normalize: ``"none"`` for ``tr(Sigma_W Sigma_B^+)``, ``"classes"`` to divide it by K.
        between: Weights of the class means in ``Sigma_B`` for ``nc1`` and ``trace_ratio``.
        measures: Keys to compute; ``None`` is all scalars that need neither classifier nor, unless the features are
            wide, a second pass. ``("nc1",)`` is the cheapest.
        scatter: ``False`` treats features of any width as wide ones: faster where they can be looked at twice.
        kwargs: Further arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an argument is out of range, if features do not have shape ``(N, D)``, or a label is out of
            range.
        RuntimeError: When computing, if a measure lacks its second pass or its classifier.

    ``forward`` (a call of the metric) adds a batch and returns the measures of that batch alone, in both passes.

    Source:
        Papyan, Han & Donoho 2020, Prevalence of neural collapse, 10.1073/pnas.2015509117.

    Example:
        >>> import torch
        >>> metric = NeuralCollapse(num_classes=2, num_features=2, measures=("nc1", "cdnv"))
        >>> metric.update(torch.tensor([[2.0, 0.0], [4.0, 0.0]]), torch.tensor([0, 0]))
        >>> metric.update(torch.tensor([[-2.0, 0.0], [-4.0, 0.0]]), torch.tensor([1, 1]))
        >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
        {'nc1': 0.1111, 'cdnv': 0.0278}
    """

    is_differentiable = True
    higher_is_better = False
    full_state_update = False

    counts: Tensor
    means: Tensor
    spreads: Tensor
    scatter: Tensor
    projected: Tensor
    correct: Tensor
    disagreeing: Tensor
    decided: Tensor

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        normalize: Normalize = "none",
        between: Between = "classes",
        measures: Sequence[str] | None = None,
        scatter: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes < 2 or num_features < 1:
            raise ValueError(
                f"num_classes must be at least 2 and num_features at least 1, got {num_classes} and {num_features}"
            )
        check_name("normalize", normalize, get_args(Normalize))
        check_name("between", between, get_args(Between))
        self.num_classes = num_classes
        self.num_features = num_features
        self.normalize: Normalize = normalize
        self.between: Between = between
        self._add_states(scatter)
        # Plain tensors, not buffers: `module.half()` would round those.
        self._centres: Tensor | None = None
        self._projector: Tensor | None = None
        self._classifier: tuple[Tensor, Tensor | None] | None = None
        self.measures = self._check_measures(measures)

    def _add_states(self, scatter: bool) -> None:
        # Sums over ranks are taken together in `_sync_dist`: means and scatter do not simply add up.
        empty = empty_class_statistics(self.num_classes, self.num_features, scatter=scatter)
        self.wide = empty.scatter is None
        for name, value in empty._asdict().items():
            if value is not None:
                zero = value.new_zeros(())
                self.add_state(name, default=zero, dist_reduce_fx=None)
                setattr(self, name, value)
                self._defaults[name] = zero.expand_as(value)  # not a copy as large as the state
        for name in _SECOND_PASS_SUMS:
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx=None)

    def _check_measures(self, measures: Sequence[str] | None) -> tuple[str, ...]:
        if measures is None:
            return tuple(
                name
                for name, measure in MEASURES.items()
                if not (measure.needs_classifier or measure.needs_second_pass or measure.by_class)
                and not (measure.needs_scatter and self.wide)
            )
        for name in measures:
            check_name("measure", name, MEASURES)
            if MEASURES[name].needs_scatter and self.wide:
                raise ValueError(
                    f"{name} needs a scatter, which features of width {self.num_features} do not have (it is kept up to"
                    f" {MAX_SCATTER_FEATURES} and with scatter=True)"
                )
        return tuple(measures)

    @property
    def needs_second_pass(self) -> bool:
        """Whether a measure must see every sample again once the class means are known."""
        return self.compares_means or (self.wide and "nc1" in self.measures)

    @property
    def compares_means(self) -> bool:
        """Whether a measure compares every sample with the class means: no scatter stands for a second look then."""
        return any(MEASURES[name].needs_second_pass for name in self.measures)

    def set_classifier(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Say which linear classifier the features go to, for NC3 and NC4.

        Args:
            weight: Its rows, shape ``(K, D)``; copied.
            bias: Shape ``(K,)``; ``None`` is zero.

        Raises:
            ValueError: If a shape is another.
        """
        expected = (self.num_classes, self.num_features)
        if weight.shape != expected or (bias is not None and bias.shape != expected[:1]):
            given = (tuple(weight.shape), None if bias is None else tuple(bias.shape))
            raise ValueError(f"weight must have shape {expected} and bias {expected[:1]}, got {given[0]}, {given[1]}")
        self._classifier = weight.detach().clone(), None if bias is None else bias.detach().clone()
        self._computed = None

    def begin_second_pass(self) -> None:
        """Fix the class means, over all ranks; the updates that follow look at the same samples again.

        Raises:
            RuntimeError: If nothing was seen in the first pass by any rank.
        """
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn,
            should_sync=self._to_sync,
            distributed_available=self.distributed_available_fn,
        ):
            statistics = self._statistics()
            if not statistics.counts.sum() > 0:
                raise RuntimeError("the second pass needs a first one: update with all the data, then begin it")
            self._centres = statistics.means.clone()
            defined = undefined_reason(statistics) is None
            self._projector = whitener(statistics, self.between) if self.wide and defined else None
        for name in _SECOND_PASS_SUMS:
            getattr(self, name).zero_()

    def update(self, features: Tensor, target: Tensor) -> None:
        """Add a batch; in the second pass, look at it again.

        Args:
            features: Shape ``(N, D)``, any floating dtype.
            target: Shape ``(N,)``, integers in ``[0, K)``.
        """
        check_features(features, target, self.num_features)
        if self._centres is None:
            update_class_statistics_(self._statistics(), features, target)
        else:
            self._look_again(self._centres, features, target)

    def _look_again(self, centres: Tensor, features: Tensor, target: Tensor) -> None:
        target = as_labels(target, self.counts)
        self.decided = self.decided + len(target)
        if self._projector is not None:
            self.projected = self.projected + projected_spread(self._projector, centres, features, target)
        if self.compares_means:
            nearest = nearest_or_none(features, centres)
            self.correct = self.correct + agreement(nearest, target)
            if self._classifier is not None:
                same = agreement(nearest, classifier_decisions(features, *self._classifier))
                self.disagreeing = self.disagreeing + (len(target) - same)

    def forward(self, features: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Add a batch, and measure it by itself: with a second look at it, where a measure needs that.

        Args:
            features: Shape ``(N, D)``, any floating dtype.
            target: Shape ``(N,)``, integers in ``[0, K)``.

        Returns:
            What ``compute()`` would return if there were no other batch.

        Raises:
            RuntimeError: If a measure lacks its classifier; nothing is added then.
        """
        self._check_classifier()
        self.update(features, target)
        kept = {name: getattr(self, name) for name in (*self._defaults, *_OF_THE_PASS)}
        try:
            measured = self._measure_alone(features, target)
        finally:
            for name, value in kept.items():
                setattr(self, name, value)
        self._forward_cache: Any = measured
        return measured

    def _measure_alone(self, features: Tensor, target: Tensor) -> dict[str, Tensor]:
        self.reset()
        self._to_sync, self._enable_grad = self.dist_sync_on_step, True
        self.update(features, target)
        if self.needs_second_pass and len(target):
            self.begin_second_pass()
            self.update(features, target)
        measured: dict[str, Tensor] = self.compute()
        return measured

    def compute(self) -> dict[str, Tensor]:
        """Return the measures by name, in float64; all scalars ``nan``, with one warning that says why, if undefined.

        Undefined are fewer than two classes, classes without samples, features that are not finite, and class means
        that coincide; for a single measure also what its function says, e.g. a classifier that is not finite.
        """
        statistics = self._statistics()
        self._check_classifier()
        reason = undefined_reason(statistics)
        undefined = [name for name in self.measures if reason and not MEASURES[name].by_class]
        if undefined:
            warnings.warn(f"{', '.join(undefined)} undefined and reported as nan: {reason}.", stacklevel=2)
        else:
            self._check_second_pass()
        seen = Seen(
            statistics,
            self.normalize,
            self.between,
            self.means.new_empty(0) if self._classifier is None else self._classifier[0].to(self.means.device),
            self.projected if self.wide else None,
            self.correct,
            self.disagreeing,
            self.decided,
        )
        nan = nan_like(statistics.means)
        return {name: nan if name in undefined else MEASURES[name].value(seen) for name in self.measures}

    def _check_classifier(self) -> None:
        lacking = [name for name in self.measures if MEASURES[name].needs_classifier]
        if lacking and self._classifier is None:
            raise RuntimeError(f"{', '.join(lacking)} need the classifier: call set_classifier(weight, bias) first")

    def _check_second_pass(self) -> None:
        if not self.needs_second_pass:
            return
        if self._centres is None:
            raise RuntimeError("a second pass is needed: call begin_second_pass() and update with the same data again")
        if self.decided != self.counts.sum():
            raise RuntimeError(
                f"the second pass must see what the first saw: {self.counts.sum():.0f} samples, got {self.decided:.0f}"
            )

    def reset(self) -> None:
        """Forget all samples, and the second pass; the classifier stays."""
        super().reset()
        self._centres = self._projector = None

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot values, of ``compute`` if none are given, as torchmetrics does.

        Args:
            val: One result of ``compute`` or ``forward``, or a list of them.
            ax: A matplotlib axis to draw into.

        Returns:
            The figure and its axis.
        """
        return self._plot(val, ax)

    def _statistics(self) -> ClassStatistics:
        return ClassStatistics(self.counts, self.means, self.spreads, None if self.wide else self.scatter)

    def _keep(self, statistics: ClassStatistics) -> None:
        for name, value in statistics._asdict().items():
            if value is not None:
                setattr(self, name, value)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add what another metric has seen, as if this one had seen it, too; in the first pass.

        Args:
            incoming_state: The other metric, or its states by name.

        Raises:
            ValueError: If it is of other classes, features or settings.
            RuntimeError: If one of both is in a second pass, unless both look at the samples from the same class means.
        """
        theirs = getattr(incoming_state, "_centres", None)
        same = theirs is not None and self._centres is not None and torch.equal(theirs, self._centres)
        if not same and (theirs is not None or self._centres is not None):
            raise RuntimeError("the second pass looks from the class means of the first: merge before it begins")
        super().merge_state(incoming_state)
        self._computed = None

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        """Merge another state into this one: what torchmetrics calls in ``forward`` and ``merge_state``."""
        if ("scatter" in incoming_state) == self.wide:
            raise ValueError("only metrics that both keep a scatter, or both none, merge: give both the same settings")
        incoming = ClassStatistics(*(incoming_state.get(name) for name in ClassStatistics._fields))  # type: ignore[arg-type]
        self._keep(merge_class_statistics(incoming, self._statistics()))
        for name in _SECOND_PASS_SUMS:
            setattr(self, name, incoming_state[name] + getattr(self, name))

    def _sync_dist(self, dist_sync_fn: Any = gather_all_tensors, process_group: Any = None) -> None:
        """Merge the states of all ranks into this one: what torchmetrics calls to synchronise."""
        total = partial(_sum_over_ranks, dist_sync_fn, process_group or self.process_group)
        self._keep(sum_class_statistics(self._statistics(), total))
        for name in _SECOND_PASS_SUMS:
            setattr(self, name, total(getattr(self, name)))
