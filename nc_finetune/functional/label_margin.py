"""How much nearer an image lies to another class than to the one that it was given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nc_finetune.functional.class_statistics import ClassStatistics, as_labels
from nc_finetune.functional.discriminant import linear_discriminant


def label_margin(
    features: Tensor | ClassStatistics,
    target: Tensor | None = None,
    shrinkage: float | Sequence[float] | None = None,
    *,
    num_classes: int | None = None,
    samples: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return how much nearer each sample lies to another class than to its own, by what all the others teach.

    ``d_y(z)^2 - min_{k != y} d_k(z)^2`` with ``d_k(z)^2 = (z - m_k)^T inv(Sigma_s) (z - m_k)`` (Mahalanobis 1936), mean
    and shrunk covariance being those without the sample, exactly: its own label has no say. Negative where the given
    label is the nearest class; the higher it is, the more the label is in doubt.

    Args:
        features: z, shape ``(N, D)``, floating point; or the statistics of a pass, with a scatter.
        target: Shape ``(N,)``, integers in ``[0, K)``; none beside statistics.
        shrinkage: As for :func:`linear_discriminant`: s in ``(0, 1]``, several to choose from, or ``None``.
        num_classes: K, at least 2; ``None`` takes the largest label plus one.
        samples: Beside statistics, features and target of samples that are among them: the margins are of these.

    Returns:
        Shape ``(N,)``, float64, or of the samples ``(M,)``; ``nan`` for one that is the only one of its class. It
        carries no gradient.

    Raises:
        ValueError: As :func:`linear_discriminant`; if there is one class alone, or statistics have no samples beside
            them.

    Example:
        >>> features = torch.tensor([[0.0], [0.2], [5.1], [5.0], [5.2], [5.3]])
        >>> (label_margin(features, torch.tensor([0, 0, 0, 1, 1, 1]), 0.5) > 0).tolist()  # the third is mislabelled
        [False, False, True, False, False, False]
    """
    if isinstance(features, ClassStatistics) and samples is None:
        raise ValueError("statistics alone have no margins: give samples=(features, target), some that are among them")
    found = linear_discriminant(features, target, shrinkage, num_classes=num_classes, samples=samples)
    labels = target if samples is None else samples[1]
    assert found.leave_one_out_logits is not None and labels is not None  # noqa: S101, PT018 - there are samples
    return 2 * margin_of(found.leave_one_out_logits, labels)


def margin_of(logits: Tensor, target: Tensor) -> Tensor:
    """Return by how much the highest logit of another class exceeds that of the given label.

    With logits of equal priors that is half the difference of squared Mahalanobis distances.

    Args:
        logits: Shape ``(N, K)``.
        target: Shape ``(N,)``, integers in ``[0, K)``.

    Returns:
        Shape ``(N,)``; ``nan`` where logits are.

    Raises:
        ValueError: If there is one class alone, or a label is out of range.

    Example:
        >>> margin_of(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([0])).item()
        2.0
    """
    if logits.shape[1] < 2:
        raise ValueError("a margin is between two classes or more, and there is one alone")
    labels = as_labels(target.to(logits.device), logits.new_zeros(logits.shape[1])).unsqueeze(1)
    others = logits.scatter(1, labels, -torch.inf).amax(1)
    return others - logits.gather(1, labels).squeeze(1)
