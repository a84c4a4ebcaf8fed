"""Scores of strangers beside ours, on the same features and of the same readout; high for what is strange."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nc_finetune.doubt import take_state
from nc_finetune.functional.readout import SolvedHead, solve_head

NEIGHBOURS, DIMENSIONS = 10, 64  # k of kNN; of ViM's principal subspace
Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Taught:
    """A readout and what it was taught.

    Attributes:
        values: Features of the training images, shape ``(N, D)``.
        labels: Shape ``(N,)``.
        classes: K.
        head: The readout.
    """

    values: Tensor
    labels: Tensor
    classes: int
    head: SolvedHead

    @classmethod
    def of(cls, values: Tensor, labels: Tensor) -> Taught:
        """Solve it; labels are numbered anew."""
        labels = labels.unique(return_inverse=True)[1]
        classes = int(labels.max()) + 1
        return cls(values, labels, classes, solve_head(values, labels, classes))

    def logits(self, values: Tensor) -> Tensor:
        return F.linear(values.double(), self.head.weight, self.head.bias)

    def detectors(self) -> dict[str, Score]:
        """Return scores by name."""
        from pytorch_ood.detector import KNN, EnergyBased, MaxSoftmax

        state = take_state(self.values, self.labels, self.classes, shrinkage=self.head.shrinkage)
        nearest = KNN(None, k=min(NEIGHBOURS, len(self.values))).fit_features(self.values, self.labels)
        return {
            "ours": lambda values: state.measure(values)[2],
            "softmax": lambda values: MaxSoftmax.score(self.logits(values)),
            "energy": lambda values: EnergyBased.score(self.logits(values)),
            "kNN": nearest.predict_features,
            "ViM": vim(self),
            "NECO": neco(self),
        }


def vim(taught: Taught) -> Score:
    """Virtual logit matching, as pytorch-ood's ``ViM`` computes it, from the N x D features and not a D x D covariance.

    Source:
        Wang et al. 2022, ViM: out-of-distribution with virtual-logit matching, arXiv:2203.10807.
    """
    weight, bias = taught.head.weight, taught.head.bias
    origin = -(torch.linalg.pinv(weight) @ bias)
    centred = taught.values.double() - origin
    basis = torch.linalg.svd(centred, full_matrices=False).Vh[:DIMENSIONS]

    def residual(values: Tensor) -> Tensor:
        moved = values.double() - origin
        return (moved - (moved @ basis.T) @ basis).norm(dim=1)

    scale = taught.logits(taught.values).amax(1).mean() / residual(taught.values).mean()
    return lambda values: scale * residual(values) - taught.logits(values).logsumexp(1)


def neco(taught: Taught) -> Score:
    """Share of a feature's length in the K principal directions, times its largest logit; pytorch-ood 0.4.0 has none.

    Source:
        Ammar et al. 2024, NECO: neural collapse based out-of-distribution detection, arXiv:2310.06823.
    """
    middle = taught.values.double().mean(0)
    spread = taught.values.double().std(0).clamp(min=1e-12)

    def scaled(values: Tensor) -> Tensor:
        return (values.double() - middle) / spread

    basis = torch.linalg.svd(scaled(taught.values), full_matrices=False).Vh[: taught.classes]

    def score(values: Tensor) -> Tensor:
        found = scaled(values)
        return -((found @ basis.T).norm(dim=1) / found.norm(dim=1)) * taught.logits(values).amax(1)

    return score
