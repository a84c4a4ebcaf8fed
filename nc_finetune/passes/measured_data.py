"""Which samples a pass of one's own goes through, in which loader, on which rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import lightning as L
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from nc_finetune._common.data_facts import dataset_labels, told_by
from nc_finetune._common.lightning_internals import inner_sampler
from nc_finetune.data.patient_loader import PatientLoader
from nc_finetune.passes.batches import ClassCap
from nc_finetune.passes.repeats import spread

LoaderSource = Iterable[Any] | Callable[[], Iterable[Any]]


def loaders_of_split(trainer: L.Trainer, split: str, given: LoaderSource | None = None) -> list[Any]:
    """Return the loaders of a split, as they are.

    For ``"train"``: what the user gave, or the datamodule's ``eval_dataloader("train")``, without augmentation, or the
    training loader.

    Raises:
        TypeError: If the training data come in several loaders.
    """
    if split == "val":
        return list(CombinedLoader(trainer.val_dataloaders, "sequential").flattened)
    if split == "test":
        return list(CombinedLoader(trainer.test_dataloaders, "sequential").flattened)
    if given is not None:
        return [images_behind(given() if callable(given) else given)]
    plain = told_by(trainer).eval_dataloader("train")
    if plain is not None:
        return [plain]
    train = CombinedLoader(trainer.train_dataloader).flattened
    if len(train) != 1:
        raise TypeError(
            f"the training data come in {len(train)} loaders; pass train_dataloader= with the one to measure"
        )
    return [images_behind(loader) for loader in train]


def images_behind(loader: Any) -> Any:
    """Return the loader of the images, where a PrefixCache lets one give what it has kept of them."""
    return getattr(getattr(loader, "dataset", None), "uncached", loader)


def some_of(loader: Any, batches: int, ranks: int, fewest: int) -> Any:
    """Return some batches of a loader for all ranks together; where it can be divided, evenly over all its samples.

    Args:
        loader: As for :class:`PlainPass`.
        batches: How many for each rank.
        ranks: Number of processes.
        fewest: Least number of samples, where they can be chosen.
    """
    if not _is_divisible(loader):
        return islice(loader, batches)
    indices = _sampled_indices(loader)
    number = max(batches * (_batch_size(loader) or 1) * ranks, fewest)
    return _plain_loader(loader, [indices[place] for place in spread(len(indices), number)])


def _is_divisible(loader: Any) -> bool:
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


class PlainPass:
    """The batches that this rank goes through: in the order of the dataset, each sample once over all ranks.

    Args:
        loader: A ``DataLoader``, whose dataset, batch size and workers are taken, or any iterable of batches.
        samples_per_class: The first samples of each class that are taken; ``None`` is all.
        rank: This process.
        ranks: Number of processes.
        shared_out: What cannot be divided among several ranks is theirs already, as in training, where each takes
            what its own loader gives.

    Raises:
        ValueError: If what cannot be divided should be, among several ranks.
    """

    def __init__(
        self, loader: Any, samples_per_class: int | None, rank: int, ranks: int, *, shared_out: bool = False
    ) -> None:
        share = samples_per_class
        divisible = _is_divisible(loader)
        if not (divisible or shared_out) and ranks > 1:
            raise ValueError(
                "an iterable dataset cannot be divided among processes without repetition; measure a map-style one"
            )
        self.batches: Iterable[Any] = loader
        self.cap = ClassCap(None)
        if divisible:
            indices, known = _chosen_indices(loader, samples_per_class)
            # None is a batch of which nothing decodes.
            self.batches = (batch for batch in _plain_loader(loader, indices[rank::ranks]) if batch is not None)
            share = None if known else samples_per_class
        if share is not None:
            self.cap = ClassCap(share // ranks + (rank < share % ranks))


def _sampled_indices(loader: DataLoader[Any]) -> Sequence[int]:
    """Return the samples that a loader draws from: a sampler of a subset stands for a split."""
    sampler: Any = getattr(loader.batch_sampler, "sampler", loader.sampler)
    while sampler is not None:
        indices = getattr(sampler, "indices", None)
        if isinstance(indices, (Sequence, Tensor)):
            return [int(index) for index in indices]
        inner = getattr(sampler, "dataset", None)  # of Lightning's wrapper for samplers under DDP
        sampler = inner_sampler(inner)
    return range(len(loader.dataset))  # type: ignore[arg-type]


def _chosen_indices(loader: DataLoader[Any], samples_per_class: int | None) -> tuple[Sequence[int], bool]:
    """Return the samples to go through, and whether the number a class is already cut."""
    indices = _sampled_indices(loader)
    if samples_per_class is None:
        return indices, True
    labels = dataset_labels(loader.dataset)
    if labels is None:
        return indices, False
    chosen = ClassCap(samples_per_class).choose(labels[index] for index in indices)
    return [indices[position] for position in chosen], True


def _batch_size(loader: DataLoader[Any]) -> int | None:
    batches: Any = loader.batch_sampler
    if batches is None:  # the samples of the dataset are batches
        return None
    size = loader.batch_size or getattr(batches, "batch_size", None)
    return int(size or math.ceil(len(loader.dataset) / len(batches)))  # type: ignore[arg-type]


def _plain_loader(loader: DataLoader[Any], indices: Sequence[int]) -> DataLoader[Any]:
    return PatientLoader(
        Subset(loader.dataset, indices),
        batch_size=_batch_size(loader),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor if loader.num_workers else None,
    )
