"""Which samples a pass of one's own goes through, in which loader, on which rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

from nc_finetune.callbacks.batches import ClassCap
from nc_finetune.data.patient_loader import PatientLoader

LABEL_ATTRIBUTES = ("labels", "targets")
LoaderSource = Iterable[Any] | Callable[[], Iterable[Any]]


def dataset_labels(dataset: Any) -> Sequence[int] | None:
    """Return the label of every sample of a dataset without reading the samples, or ``None`` where it cannot tell.

    Args:
        dataset: One with ``labels`` or ``targets``, a ``TensorDataset``, an HF dataset with a column ``label`` or
            ``labels``, or a ``Subset`` or ``ConcatDataset`` of such.

    Returns:
        As many labels as the dataset has samples.

    Example:
        >>> dataset = TensorDataset(torch.zeros(4, 2), torch.tensor([3, 1, 2, 0]))
        >>> dataset_labels(Subset(dataset, [1, 3]))
        [1, 0]
    """
    if isinstance(dataset, Subset):
        inner = dataset_labels(dataset.dataset)
        return None if inner is None else [inner[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [dataset_labels(part) for part in dataset.datasets]
        return None if None in parts else [label for part in parts if part is not None for label in part]
    found = (_as_labels(value, dataset) for value in _candidates(dataset))
    return next((labels for labels in found if labels is not None), None)


def _candidates(dataset: Any) -> list[Any]:
    columns = getattr(dataset, "column_names", None)
    named = [column for column in ("label", "labels") if isinstance(columns, list) and column in columns]
    second = dataset.tensors[1:2] if isinstance(dataset, TensorDataset) else ()  # as in a batch
    return [*(getattr(dataset, name, None) for name in LABEL_ATTRIBUTES), *second, *(dataset[name] for name in named)]


def _as_labels(values: Any, dataset: Any) -> list[int] | None:
    try:
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(list(values))
    except (TypeError, ValueError, RuntimeError):  # nothing, names of classes, a method
        return None
    fits = tensor.ndim == 1 and not tensor.is_floating_point() and len(tensor) == len(dataset)
    return tensor.tolist() if fits else None


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
        return [_images(given() if callable(given) else given)]
    plain = getattr(getattr(trainer, "datamodule", None), "eval_dataloader", None)
    if plain is not None:
        return [plain("train")]
    train = CombinedLoader(trainer.train_dataloader).flattened
    if len(train) != 1:
        raise TypeError(
            f"the training data come in {len(train)} loaders; pass train_dataloader= with the one to measure"
        )
    return [_images(loader) for loader in train]


def _images(loader: Any) -> Any:
    """Return the loader of the images, where a PrefixCache lets one give what it has kept of them."""
    return getattr(getattr(loader, "dataset", None), "uncached", loader)


class PlainPass:
    """The batches that this rank goes through: in the order of the dataset, each sample once over all ranks.

    Args:
        loader: A ``DataLoader``, whose dataset, batch size and workers are taken, or any iterable of batches.
        samples_per_class: The first samples of each class that are taken; ``None`` is all.
        rank: This process.
        ranks: Number of processes.

    Raises:
        ValueError: If what cannot be divided should be, among several ranks.
    """

    def __init__(self, loader: Any, samples_per_class: int | None, rank: int, ranks: int) -> None:
        share = samples_per_class
        divisible = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
        if not divisible and ranks > 1:
            raise ValueError(
                "an iterable dataset cannot be divided among processes without repetition; measure a map-style one"
            )
        self.batches: Iterable[Any] = loader
        self.cap = ClassCap(None)
        if divisible:
            indices, known = _chosen_indices(loader, samples_per_class)
            self.batches = _plain_loader(loader, indices[rank::ranks])
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
        sampler = getattr(inner, "_sampler", None)
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
