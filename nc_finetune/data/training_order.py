"""In which order training images come: the same for a seed and an epoch, wherever and after whatever interruption."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from nc_finetune.data.labelled_images import Drawn, SkippingLoader


class TrainingOrder(DistributedSampler[Any]):
    """The images of each epoch, shuffled or drawn with weights, shared out to ranks.

    The order depends on the seed and the epoch alone: not on how many random numbers something else has drawn. Of ranks
    each has equally many; where they do not divide, images from the start of the order come twice.

    Args:
        dataset: What is drawn from.
        seed: Which orders.
        ranks: Number of processes.
        rank: This process.
        weights: Shape ``(N,)``: draw N images with replacement, each as often as its weight says; ``None`` shuffles.
    """

    def __init__(
        self, dataset: Any, *, seed: int = 0, ranks: int = 1, rank: int = 0, weights: Tensor | None = None
    ) -> None:
        super().__init__(dataset, num_replicas=ranks, rank=rank, shuffle=True, seed=seed)
        self.weights = weights
        self.start = 0

    @property
    def epoch_seed(self) -> int:
        """A seed for this epoch; neighbouring seeds and epochs have nothing in common."""
        digest = hashlib.blake2b(f"{self.seed}:{self.epoch}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

    def __iter__(self) -> Iterator[Any]:
        """Return this rank's part of the order, once without the images that an interrupted epoch has had."""
        generator = torch.Generator().manual_seed(self.epoch_seed)
        number = len(self.dataset)  # type: ignore[arg-type]
        if self.weights is None:
            order = torch.randperm(number, generator=generator)
        else:
            order = torch.multinomial(self.weights, number, replacement=True, generator=generator)
        padded = order.repeat(-(-self.total_size // number))[: self.total_size]
        start, self.start = self.start, 0
        own = padded[self.rank :: self.num_replicas].tolist()
        if getattr(self.dataset, "transform", None) is None:
            return iter(own[start:])
        places = range(self.rank, self.total_size, self.num_replicas)
        seeds = ((self.epoch_seed + place) % 2**63 for place in places)
        return iter([Drawn(item, seed) for item, seed in zip(own, seeds, strict=True)][start:])


class TrainingLoader(SkippingLoader):
    """Batches in a :class:`TrainingOrder` that go on where an interrupted epoch stopped.

    Lightning saves ``state_dict`` in its checkpoints. Augmentation is drawn anew for each image of each epoch, by the
    order's seed: the same with any number of workers.
    """

    _given = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # All of this happens at the first batch: Lightning says the epoch after it has asked for the iterator.
        order: Any = self.sampler
        if self.generator is not None:
            self.generator.manual_seed(order.epoch_seed)
        self._given = order.start // (self.batch_size or 1)
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the seed of the order, and how many batches of this epoch have been given."""
        order: Any = self.sampler
        return {"seed": order.seed, "batches": self._given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        order: Any = self.sampler
        order.seed = state["seed"]
        order.start = state["batches"] * (self.batch_size or 1)
        self._given = state["batches"]


def balancing_weights(labels: Sequence[int]) -> Tensor:
    """Return a weight for each image by which every class is drawn equally often.

    Args:
        labels: The label of each image.

    Returns:
        Shape ``(N,)``, float64: one over the number of images of the class.

    Example:
        >>> balancing_weights([0, 0, 0, 1]).tolist()
        [0.3333333333333333, 0.3333333333333333, 0.3333333333333333, 1.0]
    """
    counts = Counter(labels)
    return torch.tensor([1 / counts[label] for label in labels], dtype=torch.float64)
