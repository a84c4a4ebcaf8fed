"""A linear head in closed form: which features, which shrinkage, which temperature, all by leave-one-out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nc_finetune.functional.class_statistics import ClassStatistics, as_labels
from nc_finetune.functional.discriminant import LinearDiscriminant, Priors, checked_shrinkages, linear_discriminant
from nc_finetune.functional.temperature import temperature
from nc_finetune.functional.undefined import named

# Of the images that a choice of a shrinkage looks at where features are not kept.
MAX_CHOICE_SAMPLES = 2000
_MAX_COMPARED = 1000  # of those that a choice among features looks at: four times an eigendecomposition
_CLEAR = 1.0  # standard errors of a difference
_ABSENT = -100.0  # logit of a class that nothing is known of
_FEW = 0.5  # shrinkage where there is nothing to choose one by


@dataclass(frozen=True)
class SolvedHead:
    """A linear head that was solved; float64.

    Attributes:
        weight: Shape ``(K, D)``, over the temperature already.
        bias: Shape ``(K,)``, likewise.
        shrinkage: Of the within-class covariance.
        temperature: What the discriminant's own logits were divided by.
        accuracy: Leave-one-out accuracy, a share; ``nan`` where no sample can be left out.
        loss: Leave-one-out cross-entropy, likewise.
        logits: Leave-one-out logits over the temperature, shape ``(N, K)``; ``nan`` for a sample that is the only one
            of its class.
        chosen: What was chosen in place of a shrinkage, by name, of a head that has none.
        left_out: How samples were held out for accuracy, loss and logits: ``"leave_one_out"``, ``"folds"``, or of what
            has nothing to fit ``"training"``.
    """

    weight: Tensor
    bias: Tensor
    shrinkage: float
    temperature: float
    accuracy: float
    loss: float
    logits: Tensor
    chosen: Mapping[str, float] = field(default_factory=dict)
    left_out: str = "leave_one_out"

    @property
    def settings(self) -> dict[str, float]:
        """What was chosen, by name."""
        return dict(self.chosen) if math.isnan(self.shrinkage) else {"shrinkage": self.shrinkage}


def solve_head(
    features: Tensor | ClassStatistics,
    target: Tensor,
    num_classes: int,
    *,
    samples: Tensor | None = None,
    shrinkage: float | Sequence[float] | None = None,
    priors: Priors = "equal",
) -> SolvedHead:
    """Solve a linear head: the shrunk discriminant at one temperature.

    Args:
        features: Shape ``(N, D)``; or statistics of a pass, of which ``samples`` are some.
        target: Labels of the features, or of the samples; integers in ``[0, K)``.
        num_classes: K. Classes without a sample get a logit of -100, with a warning: nothing is ever called that.
        samples: Features that the statistics hold, too, shape ``(M, D)``, to be left out one by one.
        shrinkage: As for :func:`~nc_finetune.functional.linear_discriminant`.
        priors: Likewise.

    Returns:
        The head.

    Raises:
        ValueError: As :func:`~nc_finetune.functional.linear_discriminant`, but for classes without a sample; if no
            class has two.

    Warns:
        UserWarning: If there are such classes, or so few samples that the shrinkage cannot be chosen.

    Example:
        >>> features = torch.tensor([[0.0, 0.0], [1.0, 0.1], [0.0, 3.0], [1.0, 3.1]])
        >>> head = solve_head(features, torch.tensor([0, 0, 2, 2]), 3)
        >>> (features.double() @ head.weight.T + head.bias).argmax(1).tolist(), head.accuracy
        ([0, 0, 2, 2], 1.0)
    """
    warn_of_few(features, target, num_classes, shrinkage)
    return _solve(features, target, num_classes, samples, shrinkage, priors)


def warn_of_few(
    features: Tensor | ClassStatistics, target: Tensor, num_classes: int, shrinkage: float | Sequence[float] | None
) -> None:
    """Say which classes have no sample, and whether there are too few to choose a shrinkage; as :func:`solve_head`."""
    counts = _checked_counts(features, target, num_classes)
    if (absent := counts == 0).any():
        warnings.warn(f"there is no sample of class {named(absent)}: nothing is ever called that", stacklevel=3)
    if not _can_choose(counts, shrinkage):
        warnings.warn(
            f"there are too few samples a class to choose a shrinkage by leaving one out; {_FEW} is taken", stacklevel=3
        )


def _checked_counts(features: Tensor | ClassStatistics, target: Tensor, num_classes: int) -> Tensor:
    labels = as_labels(target, torch.zeros(num_classes, device=target.device))
    counts = features.counts if isinstance(features, ClassStatistics) else labels.bincount(minlength=num_classes)
    if counts.max() < 2:
        raise ValueError(
            "a head is solved from how samples of one class differ, and no class has more than one; give at least one"
            " of them two"
        )
    return counts


def _can_choose(counts: Tensor, shrinkage: float | Sequence[float] | None) -> bool:
    """Tell whether samples can be left out to choose by, or there is no choice."""
    return bool((counts > 1).sum() > 1 or counts.max() > 2) or len(checked_shrinkages(shrinkage)) == 1


def _solve(
    features: Tensor | ClassStatistics,
    target: Tensor,
    num_classes: int,
    samples: Tensor | None,
    shrinkage: float | Sequence[float] | None,
    priors: Priors,
) -> SolvedHead:
    """Solve for the classes that have samples."""
    counts = _checked_counts(features, target, num_classes)
    present = counts > 0
    labels = (present.cumsum(0) - 1)[target.long()]
    if isinstance(features, ClassStatistics):
        features = features._replace(
            counts=counts[present], means=features.means[present], spreads=features.spreads[present]
        )
    tried = shrinkage if _can_choose(counts, shrinkage) else _FEW
    return _as_head(_discriminant(features, labels, samples, tried, priors), labels, present)


def _discriminant(
    features: Tensor | ClassStatistics,
    labels: Tensor,
    samples: Tensor | None,
    shrinkage: float | Sequence[float] | None,
    priors: Priors,
) -> LinearDiscriminant:
    if isinstance(features, ClassStatistics):
        given = None if samples is None else (samples, labels)
        return linear_discriminant(features, shrinkage=shrinkage, samples=given, priors=priors)
    return linear_discriminant(features, labels, shrinkage, priors=priors)


def _as_head(found: LinearDiscriminant, labels: Tensor, present: Tensor) -> SolvedHead:
    logits = found.leave_one_out_logits
    if logits is None:
        logits = found.weight.new_full((len(labels), len(found.weight)), torch.nan)
    left_out = logits.isfinite().all(1)
    scale = temperature(logits, labels).item() if left_out.any() else 1.0
    logits = logits / scale
    weight = found.weight.new_zeros(len(present), found.weight.shape[1])
    bias = weight.new_full((len(present),), _ABSENT)
    every = weight.new_full((len(labels), len(present)), _ABSENT)
    weight[present], bias[present], every[:, present] = found.weight / scale, found.bias / scale, logits
    loss = F.cross_entropy(logits[left_out], labels[left_out]).item()
    accuracy = (logits[left_out].argmax(1) == labels[left_out]).double().mean().item()
    return SolvedHead(weight, bias, found.shrinkage, scale, accuracy, loss, every)


@dataclass(frozen=True)
class ColumnChoice:
    """Which of several groups of features a head is to see.

    Attributes:
        name: Of the group that was chosen.
        accuracies: Leave-one-out accuracy of each group, by name.
        samples: How many samples were looked at.
        head: Solved on the group that was chosen by all samples, where it is there.
    """

    name: str
    accuracies: dict[str, float]
    samples: int
    head: SolvedHead | None = field(default=None, compare=False, repr=False)


def choose_columns(
    features: Tensor,
    target: Tensor,
    num_classes: int,
    groups: Mapping[str, slice | Tensor],
    prefer: str,
    *,
    shrinkage: float | Sequence[float] | None = None,
    priors: Priors = "equal",
    max_samples: int = _MAX_COMPARED,
    solved: SolvedHead | None = None,
) -> ColumnChoice:
    """Choose a group of columns by leave-one-out likelihood: the preferred one, unless another is clearly better.

    Clearly: by more than one standard error of the difference, sample by sample. Of several such the likeliest.

    Args:
        features: Shape ``(N, D)``.
        target: Shape ``(N,)``.
        num_classes: K.
        groups: Columns by name.
        prefer: One of the names.
        shrinkage: As for :func:`~nc_finetune.functional.linear_discriminant`.
        priors: Likewise.
        max_samples: Of more rows so many are looked at, four a class at least, drawn at random, the same each time.
        solved: The head on the preferred columns of all rows, where it is there already.

    Returns:
        The choice.

    Example:
        >>> target = torch.arange(40) % 2
        >>> features = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        >>> features[:, 2] += 9 * target
        >>> choose_columns(features, target, 2, {"noise": slice(0, 2), "signal": slice(2, 3)}, "noise").name
        'signal'
    """
    rows = _some_rows(target, max(max_samples, 4 * num_classes))
    few, labels, whole = features[rows], target[rows], len(rows) == len(target)
    heads = {
        name: solved
        if whole and solved is not None and name == prefer
        else _solve(few[:, columns], labels, num_classes, None, shrinkage, priors)
        for name, columns in groups.items()
    }
    losses = {name: F.cross_entropy(head.logits, labels, reduction="none") for name, head in heads.items()}
    name = clearly_best(losses, prefer)
    accuracies = {name: head.accuracy for name, head in heads.items()}
    return ColumnChoice(name, accuracies, len(rows), heads[name] if whole else (solved if name == prefer else None))


def clearly_best(losses: Mapping[str, Tensor], prefer: str) -> str:
    """Return the preferred one of several, or of those that are clearly better the one with the lowest mean loss.

    Clearly: by more than one standard error of the difference, sample by sample.

    Args:
        losses: Of the same samples, shape ``(N,)``, by name; those that are not finite are left out.
        prefer: One of the names.

    Returns:
        A name.

    Example:
        >>> losses = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([0.5, 1.5, 2.5])}
        >>> clearly_best(losses, "a"), clearly_best({**losses, "b": torch.tensor([0.0, 1.5, 4.0])}, "a")
        ('b', 'a')
    """
    gains = {name: losses[prefer] - loss for name, loss in losses.items()}
    gains = {name: gain[gain.isfinite()] for name, gain in gains.items()}
    better = [name for name, gain in gains.items() if gain.mean() > _CLEAR * gain.std() / len(gain) ** 0.5]
    return max(better, key=lambda name: gains[name].mean().item(), default=prefer)


def _some_rows(target: Tensor, number: int) -> Tensor:
    """Return the rows to look at: all, or some of every class."""
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(0)).to(target.device)
    if len(target) <= number:
        return order.sort().values
    shuffled = target[order]
    by_class = shuffled.argsort(stable=True)
    counts = shuffled.bincount()
    place = torch.arange(len(target), device=target.device) - (counts.cumsum(0) - counts)[shuffled[by_class]]
    # The first of each class come first, then the second, and so on: classes are as equal as they can be.
    return order[by_class[place.argsort(stable=True)[:number]]].sort().values
