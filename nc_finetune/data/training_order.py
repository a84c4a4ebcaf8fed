"""In which order training images come: the same for a seed and an epoch, wherever and after whatever interruption."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DistributedSampler, SequentialSampler

from nc_finetune.data.labelled_images import Drawn, SkippingLoader


def seed_of(seed: int, epoch: int) -> int:
    """Return the seed of an epoch of a run."""
    digest = hashlib.blake2b(f"{seed}:{epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class TrainingOrder(DistributedSampler[Any]):
    """The images of each epoch, shuffled or drawn with weights, shared out to ranks.

    The order depends on the seed and the epoch alone: not on how many random numbers something else has drawn. Of ranks
    each has equally many; where they do not divide, images from the start of the order come twice.

    Args:
        seed: Which orders.
        ranks: Number of processes.
        rank: This process.
        weights: Shape ``(N,)``: draw N images with replacement, each as often as its weight says; ``None`` shuffles.
        items: The N images of the dataset that there are; ``None`` is all of them.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        seed: int = 0,
        ranks: int = 1,
        rank: int = 0,
        weights: Tensor | None = None,
        items: Sequence[int] | None = None,
    ) -> None:
        super().__init__(dataset if items is None else items, num_replicas=ranks, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.dataset = dataset
        self.weights = weights
        self.items = items
        self.start = 0

    @property
    def indices(self) -> Sequence[int] | None:
        """The images that there are, those of all ranks, as a sampler of a subset says it; ``None`` for all."""
        return self.items

    @property
    def epoch_seed(self) -> int:
        """A seed for this epoch; neighbouring seeds and epochs have nothing in common."""
        return seed_of(self.seed, self.epoch)

    def batch_seed(self, number: int) -> int:
        """Return the seed of a batch of this epoch and this rank; it is none of those of single images."""
        return (self.epoch_seed - 1 - self.rank - self.num_replicas * number) % 2**63

    def __iter__(self) -> Iterator[Any]:
        """Return this rank's part of the order, once without the images that an interrupted epoch has had."""
        order = self._order(self.epoch_seed)
        padded = order.repeat(-(-self.total_size // len(order)))[: self.total_size]
        start, self.start = self.start, 0
        own = padded[self.rank :: self.num_replicas].tolist()
        if getattr(self.dataset, "transform", None) is None:
            return iter(own[start:])
        places = range(self.rank, self.total_size, self.num_replicas)
        seeds = ((self.epoch_seed + place) % 2**63 for place in places)
        return iter([Drawn(item, seed) for item, seed in zip(own, seeds, strict=True)][start:])

    def _order(self, seed: int) -> Tensor:
        """Return the items of an epoch, those of all ranks."""
        generator = torch.Generator().manual_seed(seed)
        items = torch.arange(len(self.dataset)) if self.items is None else torch.as_tensor(self.items)  # type: ignore[arg-type]
        if self.weights is None:
            return items[torch.randperm(len(items), generator=generator)]
        return items[torch.multinomial(self.weights, len(items), replacement=True, generator=generator)]


class FixedOrder(TrainingOrder, SequentialSampler):
    """The images in the order of the first epoch, in every epoch: for ``Trainer(overfit_batches=...)``.

    Lightning takes whatever is no ``SequentialSampler`` for one that shuffles, and would go through the dataset as it
    is, of which a first batch may well hold one class alone.
    """

    @property
    def indices(self) -> list[int]:
        """The order, that of all ranks."""
        items: list[int] = self._order(0).tolist()
        return items

    def _order(self, seed: int) -> Tensor:
        return super()._order(seed_of(self.seed, 0))


class SomeItems(SequentialSampler):
    """Some images of a dataset, in the order in which they are given.

    Args:
        items: Their places.
    """

    def __init__(self, items: Sequence[int]) -> None:
        super().__init__(items)
        self.indices = items

    def __iter__(self) -> Iterator[int]:
        """Return their places."""
        return iter(self.indices)


class OwnShare(UnrepeatedDistributedSampler, SequentialSampler):  # type: ignore[misc]
    """The images of one rank, each once, in the order of the dataset; Lightning sees that nothing is shuffled."""


class TrainingLoader(SkippingLoader):
    """Batches in a :class:`TrainingOrder` that go on where an interrupted epoch stopped.

    Lightning saves ``state_dict`` in its checkpoints. Augmentation is drawn anew for each image of each epoch, by the
    order's seed: the same with any number of workers.

    Attributes:
        limit: Says after how many batches an epoch ends, if that is before the order does.
    """

    limit: Callable[[], float] = staticmethod(lambda: math.inf)
    _given = 0

    @property
    def order(self) -> TrainingOrder:
        """In which order images come."""
        order: Any = self.sampler
        return cast(TrainingOrder, order)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # All of this happens at the first batch: Lightning says the epoch after it has asked for the iterator.
        if self.generator is not None:
            self.generator.manual_seed(self.order.epoch_seed)
        self._given = self.order.start // (self.batch_size or 1)
        for batch in super().__iter__():
            self._given += 1
            yield batch

    @property
    def waits(self) -> bool:
        """Whether it is to go on in the middle of an epoch, and has not begun to."""
        return bool(self.order.start)

    def state_dict(self) -> dict[str, int]:
        """Return the seed of the order, and how many batches of this epoch have been given."""
        return {"seed": self.order.seed, "batches": self._given % int(min(len(self), self.limit() or math.inf))}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.order.seed = state["seed"]
        self.order.start = state["batches"] * (self.batch_size or 1)
        self._given = state["batches"]


class TrainingProgress:
    """How far training has come through its images.

    Attributes:
        loader: The loader that training reads from, once there is one.
    """

    def __init__(self) -> None:
        self.loader: TrainingLoader | None = None
        self._resumed: dict[str, int] | None = None

    def follow(self, loader: TrainingLoader) -> None:
        """Take a new loader, which goes on where a checkpoint stopped; a later one begins a new epoch."""
        if self.loader is not None and self.loader.waits:  # loaded anew before what was resumed has gone on
            self._resumed = self.loader.state_dict()
        if self._resumed is not None:
            loader.load_state_dict(self._resumed)
            self._resumed = None
        self.loader = loader

    def state_dict(self, splits_hash: str) -> dict[str, Any]:
        """Return what a checkpoint says: which images are in which split, and how many batches were given."""
        # Lightning saves the loader's state, too, but loads it too late where the schedule asks for its length.
        return {"splits_hash": splits_hash, "training": None if self.loader is None else self.loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any], splits_hash: str) -> None:
        """Let the next loader go on from there.

        Raises:
            ValueError: If the checkpoint was trained on other splits.
        """
        if state.get("splits_hash") != splits_hash:
            raise ValueError(
                f"the checkpoint was trained on other splits (hash {state.get('splits_hash')}, here"
                f" {splits_hash}); resume with the same source, seed and sizes"
            )
        self._resumed = state["training"]


def balancing_weights(labels: Sequence[int]) -> Tensor:
    """Return a weight for each image by which every class is drawn equally often.

    Returns:
        Shape ``(N,)``, float64: one over the number of images of the class.

    Example:
        >>> balancing_weights([0, 0, 0, 1]).tolist()
        [0.3333333333333333, 0.3333333333333333, 0.3333333333333333, 1.0]
    """
    counts = Counter(labels)
    return torch.tensor([1 / counts[label] for label in labels], dtype=torch.float64)
