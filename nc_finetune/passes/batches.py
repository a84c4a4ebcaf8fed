"""Inputs and labels of a batch, and which of its samples count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DistributedSampler

from nc_finetune._common.lightning_internals import before_transfer, current_datamodule
from nc_finetune.errors import unknown_name

Unpack = Callable[[Any], tuple[Any, Tensor]]
HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
INPUT_KEYS = ("image", "images", "pixel_values", "img", "imgs", "input", "inputs", "x", "data")
LABEL_KEYS = ("label", "labels", "target", "targets", "fine_label", "y", "class")


def prepare_batch(trainer: L.Trainer, module: L.LightningModule, batch: Any, dataloader_idx: int = 0) -> Any:
    """Do to a batch what the loops of a trainer do before a step: everybody prepares batches here who has no loop.

    Args:
        trainer: Its precision decides the dtype, its strategy the device; hooks see the stage that it is in.
        module: Its module, whose transfer hooks are called where the datamodule has none.
        batch: As it comes from a loader.
        dataloader_idx: Which of the loaders of its split that is.

    Returns:
        What a step would see.
    """
    batch = trainer.precision_plugin.convert_input(batch)
    batch = before_transfer(module, batch, dataloader_idx)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=dataloader_idx)


def changes_batches(trainer: Any, hooks: Iterable[str] = HOOKS) -> bool:
    """Tell whether the datamodule, or the module where Lightning asks that, has a transfer hook of its own."""
    datamodule, module = current_datamodule(trainer), trainer.lightning_module
    return any(
        (datamodule is not None and is_overridden(hook, datamodule)) or is_overridden(hook, module) for hook in hooks
    )


def unpack_batch(batch: Any) -> tuple[Any, Tensor]:
    """Return the inputs and the labels of a batch.

    Args:
        batch: ``(inputs, labels)``, where more may follow, or a mapping with one of the keys ``image``, ``images``,
            ``pixel_values``, ... and one of ``label``, ``labels``, ``target``, ...

    Returns:
        What the module is called with, and the labels.

    Raises:
        TypeError: If there is nothing to take for labels.
        ValueError: If a mapping has none of the keys; the message lists them.

    Example:
        >>> unpack_batch({"pixel_values": torch.zeros(2, 3, 8, 8), "labels": torch.tensor([0, 1])})[1]
        tensor([0, 1])
    """
    if isinstance(batch, Mapping):
        return batch[_first_key(batch, INPUT_KEYS, "inputs")], batch[_first_key(batch, LABEL_KEYS, "labels")]
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return batch[0], batch[1]
    raise TypeError(
        f"a batch must be (inputs, labels) or a mapping with both, got {type(batch).__name__}; for another kind pass"
        " unpack=, a function that takes the batch and returns (inputs, labels)"
    )


def _first_key(batch: Mapping[Any, Any], keys: Sequence[str], kind: str) -> str:
    for key in keys:
        if key in batch:
            return key
    raise unknown_name(f"key for {kind} in a batch of", ", ".join(map(str, batch)), keys)


def check_labels(labels: Tensor | Iterable[Any]) -> Tensor:
    """Return labels as int64 of shape ``(N,)``; how large they are is not looked at.

    Args:
        labels: Integers of shape ``(N,)`` or ``(N, 1)``, a tensor or a list; for two classes also 0 and 1 as floats or
            booleans; or one-hot rows of any dtype, shape ``(N, K)``.

    Returns:
        The labels.

    Raises:
        TypeError: If they are no integers.
        ValueError: If they have another shape.

    Example:
        >>> check_labels([[1], [0]]), check_labels([[0.0, 1.0], [1.0, 0.0]])
        (tensor([1, 0]), tensor([1, 0]))
    """
    labels = torch.as_tensor(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 or (labels.ndim == 1 and not _is_integer(labels)):  # of plain integers no value is waited for
        known = ((labels == 0) | (labels == 1)).all()
        if known if labels.ndim == 1 else known & (labels.sum(dim=1) == 1).all():
            labels = labels.to(torch.int64)
            labels = labels if labels.ndim == 1 else labels.argmax(dim=1)
    if not _is_integer(labels):
        raise TypeError(
            f"labels must be integers, one a sample, got {labels.dtype} of shape {tuple(labels.shape)}; pass unpack=, a"
            " function that takes the batch and returns (inputs, labels)"
        )
    if labels.ndim != 1:
        raise ValueError(
            f"labels must have shape (N,), got {tuple(labels.shape)}; pass unpack=, a function that takes the batch and"
            " returns (inputs, labels)"
        )
    return labels.to(torch.int64)


def _is_integer(labels: Tensor) -> bool:
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)


def count_unrepeated(loader: Any, seen: int, size: int) -> int:
    """Say how many of the next samples of a loader are no repetitions.

    A ``DistributedSampler`` repeats samples so that all ranks have equally many: sample j of rank r of W stands at
    j W + r of the sampler's order, and those from the length of the dataset on are repeated ones. They come last.

    Args:
        loader: The loader of this rank.
        seen: Samples that this rank has had from it in this pass.
        size: Samples in the batch that comes now.

    Returns:
        Between 0 and ``size``: the first ones of the batch count.

    Example:
        >>> sampler = DistributedSampler(range(5), num_replicas=2, rank=1, shuffle=False)
        >>> count_unrepeated(torch.utils.data.DataLoader(range(5), sampler=sampler), seen=0, size=3)
        2
    """
    sampler = distributed_sampler(loader)
    if sampler is None:
        return size
    own = len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]
    return max(0, min(size, own - seen))


def distributed_sampler(loader: Any) -> DistributedSampler[Any] | None:
    """Return the sampler that shares the samples of a loader out to ranks, if there is one."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    candidates = (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    return next((sampler for sampler in candidates if isinstance(sampler, DistributedSampler)), None)


class ClassCap:
    """Choose the first samples of each class, up to a number, while batches go by.

    Args:
        samples_per_class: How many of each class; ``None`` chooses all.

    Example:
        >>> cap = ClassCap(2)
        >>> cap.choose([0, 0, 1, 0]), cap.choose([0, 1, 1])
        ([0, 1, 2], [1])
    """

    def __init__(self, samples_per_class: int | None) -> None:
        self.samples_per_class = samples_per_class
        self._counts: dict[int, int] = {}

    def choose(self, labels: Iterable[int]) -> list[int]:
        """Return the positions of those labels whose class is not full yet."""
        chosen = []
        for position, label in enumerate(labels):
            count = self._counts.get(label, 0)
            if self.samples_per_class is None or count < self.samples_per_class:
                self._counts[label] = count + 1
                chosen.append(position)
        return chosen

    def is_full(self, num_classes: int) -> bool:
        """Tell whether nothing more will be chosen of any class."""
        cap = self.samples_per_class
        return cap is not None and all(self._counts.get(label, 0) >= cap for label in range(num_classes))
