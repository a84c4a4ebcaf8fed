"""Classifiers to compare with, solved from features: logistic regression, nearest class mean, neighbours, priors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nc_finetune.functional.class_statistics import ClassStatistics, as_labels
from nc_finetune.functional.logistic_regression import LinearFit, logistic_path
from nc_finetune.functional.readout import SolvedHead
from nc_finetune.functional.temperature import temperature

PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-14, 5))
NEIGHBORS = (1, 3, 5, 10, 20, 50, 100)
_FOLDS = 5
_ABSENT = -100.0  # logit of a class that nothing is known of
_SHARPNESS = 0.07  # of the weights of neighbours
_LEAST_SHARE = 1e-3  # of the votes, where a class has none
_ROWS = 2048  # of similarities at a time


def solve_logistic(
    features: Tensor | ClassStatistics,
    target: Tensor,
    num_classes: int,
    *,
    samples: Tensor | None = None,
    l2: Sequence[float] | None = None,
) -> SolvedHead:
    """Solve multinomial logistic regression by L-BFGS, its penalty by five stratified folds of the samples.

    The penalty with the least cross-entropy of the folds is taken, and all samples are fitted with it. A sample whose
    class no other fold has says nothing of a penalty, and is left out of that.

    Args:
        features: Shape ``(N, D)``.
        target: Shape ``(N,)``, integers in ``[0, K)``.
        num_classes: K.
        samples: Must be ``None``: statistics do not suffice.
        l2: Penalties, as for :func:`~nc_finetune.functional.logistic_regression.logistic_path`; ``None`` is 19 from
            1e-7 to 100.

    Returns:
        The head; ``chosen`` has its ``l2``, ``logits`` are those of the folds, over one temperature.

    Raises:
        ValueError: If the features were too many to be kept, there is one sample alone, or as
            :func:`~nc_finetune.functional.logistic_regression.logistic_path`.

    Warns:
        UserWarning: If no class has two samples, so that the penalty is the middle one.

    Source:
        Alain & Bengio 2016, Understanding intermediate layers using linear classifier probes, arXiv:1610.01644;
        penalties: Radford et al. 2021, arXiv:2103.00020.

    Example:
        >>> features = torch.tensor([[-2.0], [-1.0], [-1.5], [1.0], [1.5], [2.0]])
        >>> head = solve_logistic(features, torch.tensor([0, 0, 0, 1, 1, 1]), 2)
        >>> (features.double() @ head.weight.T + head.bias).argmax(1).tolist(), head.accuracy
        ([0, 0, 0, 1, 1, 1], 1.0)
    """
    features = _kept(features, "logistic regression")
    labels = as_labels(target, features.new_zeros(num_classes))
    if len(labels) < 2:
        raise ValueError("logistic regression needs two samples at least, got one")
    penalties = sorted(l2 or PENALTIES, reverse=True)
    folds = _folds_of(labels)
    held_out = features.new_full((len(penalties), len(labels), num_classes), torch.nan)
    for number in range(int(folds.max()) + 1):
        out, rest = folds == number, folds != number
        known = out & (labels[rest].bincount(minlength=num_classes) > 0)[labels]
        for place, fit in enumerate(logistic_path(features[rest], labels[rest], num_classes, penalties)):
            held_out[place, known] = _logits(fit, features[known]).to(held_out)
    seen = held_out[0].isfinite().all(1)
    if seen.any():
        losses = torch.stack([F.cross_entropy(logits[seen], labels[seen]) for logits in held_out])
        best = int(losses.argmin())
    else:
        best = len(penalties) // 2
        warnings.warn(f"no class has two samples to choose a penalty by; {penalties[best]:g} is taken", stacklevel=2)
    fit = logistic_path(features, labels, num_classes, penalties[: best + 1])[-1]
    return _judged(fit.weight, fit.bias, held_out[best], labels, {"l2": fit.l2}, "folds")


def solve_nearest_mean(
    features: Tensor | ClassStatistics, target: Tensor, num_classes: int, *, samples: Tensor | None = None
) -> SolvedHead:
    """Solve the nearest class mean, a linear head: ``logits = 2 m_k . h - |m_k|^2``, over one temperature.

    Args:
        features: Shape ``(N, D)``; or statistics of a pass, of which ``samples`` are some.
        target: Labels of the features, or of the samples.
        num_classes: K. A class without a sample gets a logit of -100.
        samples: Features that the statistics hold, too.

    Returns:
        The head; its leave-one-out logits are by the class means without the sample.

    Source:
        Mensink et al. 2013, Distance-based image classification, 10.1109/TPAMI.2013.83.

    Example:
        >>> features, target = torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1])
        >>> head = solve_nearest_mean(features, target, 2)
        >>> (torch.tensor([[2.4], [2.6]], dtype=torch.float64) @ head.weight.T + head.bias).argmax(1).tolist()
        [0, 1]
    """
    values = (samples if isinstance(features, ClassStatistics) else features).double()  # type: ignore[union-attr]
    labels = as_labels(target, values.new_zeros(num_classes))
    if isinstance(features, ClassStatistics):
        counts, means = features.counts.double(), features.means.double()
    else:
        counts = labels.bincount(minlength=num_classes).double()
        sums = values.new_zeros(num_classes, values.shape[1]).index_add_(0, labels, values)
        means = sums / counts.clamp(min=1)[:, None]
    present = counts > 0
    centre = means[present].mean(0)  # from where logits are not large: nothing cancels, and -100 is below them all
    means, values = means - centre, values - centre
    bias = -means.square().sum(1)
    logits = 2 * values @ means.T + bias
    rows, own, number = torch.arange(len(labels), device=labels.device), means[labels], counts[labels][:, None]
    without = (number * own - values) / (number - 1)  # nan for the only sample of a class
    logits[rows, labels] = 2 * (values * without).sum(1) - without.square().sum(1)
    logits[(counts[labels] < 2).nonzero()[:, 0]] = torch.nan
    weight = 2 * means
    found = _judged(weight[present], (bias - weight @ centre)[present], logits[:, present], _dense(labels, present))
    return _for_all_classes(found, present)


def solve_priors(
    features: Tensor | ClassStatistics, target: Tensor, num_classes: int, *, samples: Tensor | None = None
) -> SolvedHead:
    """Solve the head that looks at nothing: logits are the logarithms of the shares of the classes.

    Args:
        features: Shape ``(N, D)``, or statistics.
        target: Labels of the features, or of the samples.
        num_classes: K. A class without a sample gets a logit of -100.
        samples: As for :func:`solve_nearest_mean`.

    Returns:
        The head.

    Example:
        >>> head = solve_priors(torch.zeros(4, 2), torch.tensor([0, 1, 1, 1]), 2)
        >>> head.bias.exp().tolist(), head.accuracy
        ([0.25, 0.75], 0.75)
    """
    kept = isinstance(features, ClassStatistics)
    width = features.means.shape[1] if isinstance(features, ClassStatistics) else features.shape[1]
    counts = features.counts if isinstance(features, ClassStatistics) else target.bincount(minlength=num_classes)
    bias = (counts.double() / counts.sum()).log().clamp(min=_ABSENT)
    logits = bias.expand(len(samples if kept and samples is not None else target), -1)
    right = (logits.argmax(1) == target).double().mean().item()
    loss = F.cross_entropy(logits, target.long()).item()
    weight = bias.new_zeros(num_classes, width)
    return SolvedHead(weight, bias, torch.nan, 1.0, right, loss, logits, {}, "training")


def solve_neighbors(
    features: Tensor | ClassStatistics, target: Tensor, num_classes: int, *, samples: Tensor | None = None
) -> SolvedHead:
    """Take features of unit length as neighbours, and choose of how many by leave-one-out accuracy.

    Args:
        features: Shape ``(N, D)``, of unit length.
        target: Shape ``(N,)``.
        num_classes: K.
        samples: Must be ``None``: statistics do not suffice.

    Returns:
        A head whose ``weight`` are the N features and whose ``bias`` are their labels, with the number of
        ``neighbors`` in ``chosen``: for :func:`votes_of_neighbors`.

    Raises:
        ValueError: If the features were too many to be kept, or there is but one.
    """
    features = _kept(features, "k nearest neighbours")
    labels = as_labels(target, features.new_zeros(num_classes))
    if len(labels) < 2:
        raise ValueError("neighbours need at least two samples, got one")
    tried = [number for number in NEIGHBORS if number < len(labels)]
    votes = [torch.empty(len(labels), num_classes, device=labels.device) for _ in tried]
    for start in range(0, len(labels), _ROWS):
        rows = torch.arange(start, min(start + _ROWS, len(labels)), device=labels.device)
        near = (features[rows] @ features.T).float()
        near[rows - start, rows] = -torch.inf  # nobody votes for itself
        for found, number in zip(votes, tried, strict=True):
            found[rows] = _votes(near, labels, num_classes, number)
    right = [(found.argmax(1) == labels).double().mean().item() for found in votes]
    best = max(range(len(tried)), key=lambda place: right[place])
    scale = temperature(votes[best], labels).item()
    logits, chosen = votes[best].double() / scale, {"neighbors": float(tried[best])}
    loss = F.cross_entropy(logits, labels).item()
    bank, own = features.double(), labels.double()
    return SolvedHead(bank, own, torch.nan, scale, right[best], loss, logits, chosen, "leave_one_out")


def votes_of_neighbors(features: Tensor, bank: Tensor, labels: Tensor, num_classes: int, neighbors: int) -> Tensor:
    """Let the nearest vote, each by ``exp(cosine / 0.07)``; return logarithms of the shares of the votes.

    Args:
        features: Shape ``(N, D)``, of unit length.
        bank: Shape ``(M, D)``, likewise.
        labels: Shape ``(M,)``.
        num_classes: K.
        neighbors: How many vote, at most M.

    Returns:
        Shape ``(N, K)``, the logarithms of shares, a thousandth where a class has no vote.

    Source:
        Wu et al. 2018, Unsupervised feature learning via non-parametric instance discrimination, arXiv:1805.01978;
        Caron et al. 2021, DINO, arXiv:2104.14294.

    Example:
        >>> bank, labels = torch.eye(2), torch.tensor([0, 1])
        >>> votes_of_neighbors(torch.tensor([[0.6, 0.8]]), bank, labels, 2, 1).argmax(1).tolist()
        [1]
    """
    return _votes((features @ bank.T).float(), labels, num_classes, neighbors)


def _votes(near: Tensor, labels: Tensor, num_classes: int, neighbors: int) -> Tensor:
    closest = near.topk(neighbors, dim=1)
    weights = ((closest.values - closest.values[:, :1]) / _SHARPNESS).exp()
    shares = near.new_zeros(near.shape[0], num_classes).scatter_add_(1, labels[closest.indices], weights)
    return (shares / shares.sum(1, keepdim=True)).clamp(min=_LEAST_SHARE).log()


def _kept(features: Tensor | ClassStatistics, what: str) -> Tensor:
    if isinstance(features, ClassStatistics):
        raise ValueError(f"{what} looks at every image, and these are too many to be kept; take fewer, or LayerReadout")
    return features


def _folds_of(labels: Tensor) -> Tensor:
    """Number samples so that every class is spread over the folds: by its own count in a fixed random order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).to(labels.device)
    sorted_ = order[labels[order].argsort(stable=True)]
    found = torch.empty_like(labels)
    found[sorted_] = torch.arange(len(labels), device=labels.device) % min(_FOLDS, len(labels))
    return found


def _logits(fit: LinearFit, features: Tensor) -> Tensor:
    return features.to(fit.weight) @ fit.weight.T + fit.bias


def _judged(
    weight: Tensor,
    bias: Tensor,
    logits: Tensor,
    labels: Tensor,
    chosen: Mapping[str, float] | None = None,
    left_out: str = "leave_one_out",
) -> SolvedHead:
    """Put a head and the logits of samples that it was not fitted to over one temperature."""
    seen = logits.isfinite().all(1)
    scale = temperature(logits, labels).item() if seen.any() else 1.0
    logits = logits.double() / scale
    loss = F.cross_entropy(logits[seen], labels[seen]).item()
    accuracy = (logits[seen].argmax(1) == labels[seen]).double().mean().item()
    weight, bias = weight.double() / scale, bias.double() / scale
    return SolvedHead(weight, bias, torch.nan, scale, accuracy, loss, logits, dict(chosen or {}), left_out)


def _dense(labels: Tensor, present: Tensor) -> Tensor:
    """Number labels anew by the classes that are there."""
    return (present.cumsum(0) - 1)[labels]


def _for_all_classes(head: SolvedHead, present: Tensor) -> SolvedHead:
    """Give the classes that are not there a logit of -100."""
    weight = head.weight.new_zeros(len(present), head.weight.shape[1])
    bias = head.bias.new_full((len(present),), _ABSENT)
    logits = head.logits.new_full((len(head.logits), len(present)), _ABSENT)
    weight[present], bias[present], logits[:, present] = head.weight, head.bias, head.logits
    return replace(head, weight=weight, bias=bias, logits=logits)
