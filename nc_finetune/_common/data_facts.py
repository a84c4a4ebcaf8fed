"""What data tell of themselves: a datamodule by its attributes, a dataset by the usual conventions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from nc_finetune._common.lightning_internals import current_datamodule, loaders_in_use, loaders_to_come

LABEL_ATTRIBUTES = ("labels", "targets")


class TellsOfData(Protocol):
    """What a ``LightningDataModule`` may tell: :class:`~nc_finetune.ImageData` tells all of it, yours what it knows.

    Nothing of this must be there, and nothing needs to be inherited: a member that is missing, or ``None``, is not
    known. Classes and their counts are then taken from the datasets of the loaders, where these follow the conventions
    of torchvision (``classes``, ``targets``) or HF datasets (``features``, a column ``label``).

    Attributes:
        num_classes: K; compared with the model's.
        class_names: K names in the order of the labels: for zero-shot heads, predictions and files of models.
        class_counts: Training samples of each of the K classes: for losses that balance classes.
        multi_label: Whether a sample may have several labels.
        image_size: Height and width of the images: files of models name it.
        interpolation: Filter by which images were resized: likewise.
        files: The files of ``predict_dataloader``, one a sample.
        predicted_items: The numbers of its samples, where some are left out.
        deterministic: Whether a training sample is the same each time that it is read, transfer hooks included.
            ``None`` finds out by reading some several times.

    Example:
        >>> import lightning as L
        >>> class Pets(L.LightningDataModule):
        ...     class_names = ("cat", "dog")
        >>> DataFacts(Pets()).num_classes
        2
    """

    num_classes: int | None
    class_names: Sequence[str] | None
    class_counts: Sequence[int] | None
    multi_label: bool | None
    image_size: int | None
    interpolation: str | None
    files: Sequence[str] | None
    predicted_items: Sequence[int] | None
    deterministic: bool | None

    def eval_dataloader(self, split: str) -> Iterable[Any]:
        """Return batches of ``"train"``, ``"val"`` or ``"test"`` in a fixed order, without augmentation."""

    def identity(self, images: Any) -> str | None:
        """Return a text that is the same for the same pixels and labels of a dataset; ``None`` hashes them all."""


class DataFacts:
    """What is known of data, from the datamodule first and its datasets otherwise; ``None`` where nobody knows.

    Args:
        datamodule: Of which any member of :class:`TellsOfData` is taken.
        datasets: Those of the training split first.
    """

    def __init__(self, datamodule: Any = None, datasets: Iterable[Any] = ()) -> None:
        self._datamodule = datamodule
        self._datasets = tuple(datasets)

    def _told(self, name: str) -> Any:
        return getattr(self._datamodule, name, None)

    @property
    def num_classes(self) -> int | None:
        """K, as the datamodule says it."""
        told, names = self._told("num_classes"), self._told("class_names")
        return told if told is not None or names is None else len(names)

    def class_names(self, num_classes: int | None = None) -> Sequence[str] | None:
        """Return the names in the order of the labels; those of a dataset only if they are as many as the classes."""
        told: Sequence[str] | None = self._told("class_names")
        if told is not None:
            return told
        found = (names for dataset in self._datasets if (names := dataset_class_names(dataset)))
        return next((names for names in found if num_classes in (None, len(names))), None)

    def class_counts(self, num_classes: int) -> Sequence[int] | None:
        """Return the training samples of each of the K classes."""
        told: Sequence[int] | None = self._told("class_counts")
        if told is not None or not self._datasets:
            return told
        labels = dataset_labels(self._datasets[0])
        if labels is None or not all(0 <= label < num_classes for label in labels):
            return None
        found = Counter(labels)
        return [found[label] for label in range(num_classes)]

    @property
    def multi_label(self) -> bool | None:
        """Whether a sample may have several labels."""
        told: bool | None = self._told("multi_label")
        return told

    @property
    def image_size(self) -> int | None:
        """Height and width of the images."""
        told: int | None = self._told("image_size")
        return told

    @property
    def interpolation(self) -> str | None:
        """Filter by which images were resized."""
        told: str | None = self._told("interpolation")
        return told

    @property
    def files(self) -> Sequence[str] | None:
        """The files of the images to predict."""
        told: Sequence[str] | None = self._told("files")
        return told

    @property
    def predicted_items(self) -> Sequence[int] | None:
        """The numbers of the images to predict."""
        told: Sequence[int] | None = self._told("predicted_items")
        return told

    @property
    def deterministic(self) -> bool | None:
        """Whether a training sample is the same each time."""
        told: bool | None = self._told("deterministic")
        return told

    def eval_dataloader(self, split: str) -> Iterable[Any] | None:
        """Return the batches of a split without augmentation."""
        build = self._told("eval_dataloader")
        found: Iterable[Any] | None = None if build is None else build(split)
        return found

    def identity(self, dataset: Any) -> str | None:
        """Return a text that stands for the content of a dataset."""
        identity = self._told("identity")
        found: str | None = None if identity is None else identity(dataset)
        return found


def told_by(trainer: Any) -> DataFacts:
    """Return what is known of the data of a trainer."""
    datasets = (getattr(loader, "dataset", None) for loop in _loops(trainer) for loader in _loaders(loop))
    return DataFacts(current_datamodule(trainer), [dataset for dataset in datasets if dataset is not None])


def _loops(trainer: Any) -> list[Any]:
    """Return the loops of a trainer, that which knows the training split first."""
    if not hasattr(trainer, "fit_loop"):  # none is attached
        return []
    evaluation = (trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
    return [trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop, *evaluation]


def _loaders(loop: Any) -> list[Any]:
    """Return the loaders of a loop: those in use, or those that were passed to the trainer."""
    found, given = loaders_in_use(loop), loaders_to_come(loop)
    if found is None:
        return [] if given is None else list(CombinedLoader(given).flattened)
    return found


def read_samples(dataset: Any, items: Sequence[Any]) -> list[Any]:
    """Read samples as a loader does; a dataset may leave some out.

    Args:
        dataset: One with ``__getitem__``, or ``__getitems__`` for several at once.
        items: What a sampler gives.

    Example:
        >>> read_samples("abcd", [3, 1])
        ['d', 'b']
    """
    if hasattr(dataset, "__getitems__"):
        found: list[Any] = dataset.__getitems__(list(items))
        return found
    return [dataset[item] for item in items]


def dataset_class_names(dataset: Any) -> list[str] | None:
    """Return the names of the classes of a dataset: its ``classes``, or those of an HF dataset's ``label``.

    Example:
        >>> from types import SimpleNamespace
        >>> dataset_class_names(Subset(SimpleNamespace(classes=["cat", "dog"]), [0]))
        ['cat', 'dog']
    """
    for part in _whole_datasets(dataset):
        features = getattr(part, "features", None)
        column = next((features[name] for name in ("label", "labels") if name in features), None) if features else None
        for names in (getattr(part, "classes", None), getattr(column, "names", None)):
            if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
                return list(names)
    return None


def _whole_datasets(dataset: Any) -> Iterator[Any]:
    """Look into subsets and concatenations."""
    if isinstance(dataset, Subset):
        yield from _whole_datasets(dataset.dataset)
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from _whole_datasets(part)
    else:
        yield dataset


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
