"""How accurate what was chosen will be on new images: an estimate that knows of the choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

_DRAWS = 1000


@dataclass(frozen=True)
class Estimate:
    """An accuracy on new images.

    Attributes:
        accuracy: A share, in ``[0, 1]``.
        low: Lower end of its 95 % interval.
        high: Upper end.
        images: On how many images it rests.
        optimism: By how much the accuracy of the best candidate was taken down for having been the best of several.
        independent: How many images that err independently tell as much.
    """

    accuracy: float
    low: float
    high: float
    images: int
    optimism: float = 0.0
    independent: float = 0.0

    def less(self, optimism: float) -> Estimate:
        """Return the same, taken down for a choice."""
        accuracy = max(0.0, self.accuracy - optimism)
        interval = wilson_interval(accuracy, self.independent)
        return Estimate(accuracy, *interval, self.images, self.optimism + optimism, self.independent)

    def __str__(self) -> str:
        if not self.images:
            return "nothing is known of it, since no image could be held out"
        return f"{100 * self.accuracy:.1f} % (95 % interval {100 * self.low:.1f} to {100 * self.high:.1f})"


def estimate_accuracy(correct: Sequence[Tensor], seed: int = 0, *, folds: int | None = None) -> Estimate:
    """Estimate the accuracy of the best of several candidates from images that none of them was trained on.

    The best of several looks better than it is. So each of 1,000 bootstrap samples of the images chooses a best one
    anew, which is judged by the images that are not in the sample (Tsamardinos et al. 2018, BBC-CV,
    10.1007/s10994-018-5714-4, arXiv:1708.07180). The interval is Wilson's (1927, 10.1080/01621459.1927.10502953) about
    that estimate, at the number of images. Where these are folds, each judging what the others have taught, they do not
    err independently: the variance is then that of ``1 + K / (K - 1)`` times fewer images (Nadeau & Bengio 2003,
    Inference for the generalization error, 10.1023/A:1024068626366).

    Args:
        correct: For each candidate whether each image is recognised, bool, shape ``(N,)``; the same images in the same
            order. Of equal candidates the first is the best.
        seed: Of the samples.
        folds: K; ``None`` for images that nobody was trained on.

    Returns:
        The estimate.

    Raises:
        ValueError: If there are no candidates or no images.

    Example:
        >>> right = torch.arange(100) % 10 > 0
        >>> print(estimate_accuracy([right]))
        90.0 % (95 % interval 82.6 to 94.5)
        >>> estimate_accuracy([right, right.roll(1), right.roll(2)]).optimism > 0
        True
    """
    if not len(correct) or not len(correct[0]):
        raise ValueError(f"an accuracy needs candidates and images, got {len(correct)} candidates")
    table = torch.stack([right.double().cpu() for right in correct])
    candidates, images = table.shape
    best = table.mean(1).max().item()
    optimism = 0.0 if candidates == 1 or images == 1 else max(0.0, _optimism(table, seed))
    expected = best - optimism
    independent = images if folds is None else images / (1 + folds / (folds - 1))
    return Estimate(expected, *wilson_interval(expected, independent), images, optimism, independent)


def _optimism(table: Tensor, seed: int) -> float:
    """Return by how much out of the bag the choices are worse than the one that was chosen by all images."""
    images = table.shape[1]
    drawn = torch.randint(images, (_DRAWS, images), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(_DRAWS, images, dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    chosen = (weights @ table.T).argmax(1)
    outside = (weights == 0).double()
    total, lost = outside.sum(1), table[table.mean(1).argmax()] - table[chosen]
    return ((outside * lost).sum(1)[total > 0] / total[total > 0]).mean().item()


def wilson_interval(share: float, number: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a share.

    Args:
        share: In ``[0, 1]``.
        number: Of trials, at least 1.
        confidence: In ``(0, 1)``.

    Source:
        Wilson 1927, 10.1080/01621459.1927.10502953.

    Example:
        >>> [round(end, 3) for end in wilson_interval(0.5, 100)]
        [0.404, 0.596]
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * (share * (1 - share) / number + z * z / (4 * number * number)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
