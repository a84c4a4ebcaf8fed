"""Whether data come out the same when they are read again, everything included that is done to them on their way."""

from __future__ import annotations

import hashlib
import pickle
import random
import warnings
from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader, IterableDataset

from nc_finetune._common.data_facts import read_samples, told_by
from nc_finetune.data.batch_transforms import numbers_as_they_come
from nc_finetune.passes.batches import prepare_batch
from nc_finetune.passes.evaluation import evaluating

_READS = 4
_ROWS = 8
_WITNESSES = 32


def what_differs(
    trainer: L.Trainer, module: L.LightningModule, loader: Any, *, training: bool = False, number: int = 0
) -> str | None:
    """Read some samples of a loader several times, and say what gave something else.

    Whatever draws random numbers counts, although nothing came of it this time: a rare flip is one that did not happen.

    Args:
        trainer: How batches get to the device.
        module: Its module.
        loader: A ``DataLoader``, or any iterable of batches, of which the first is looked at.
        training: Whether hooks should see the stage that they see in training.
        number: Which of the loaders of its split that is.

    Returns:
        A sentence without its end; ``None`` where all was the same.

    Raises:
        Exception: Whatever the data raise.
    """
    if isinstance(loader, Iterator):
        return None  # what comes only once is not the same again, nor may a look take it away
    indexed = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    with evaluating(trainer, module, training=training), numbers_as_they_come():
        if not indexed:
            return None if _same(_first_batch(loader), _first_batch(loader)) else "the data begin with others each time"
        rows = spread(len(loader.dataset), _ROWS)
        stages = {
            "the dataset gives other samples each time that they are read": lambda: read_samples(loader.dataset, rows),
            "collate_fn makes other batches of the same samples": loader.collate_fn,
            "the transfer hooks make other batches of the same one": lambda batch: prepare_batch(
                trainer, module, batch, number
            ),
        }
        found: list[Any] = []
        for reason, step in stages.items():
            before = _random_states()
            found = [step(given) for given in found] if found else [step() for _ in range(_READS)]
            if _random_states() != before or not all(_same(found[0], other) for other in found[1:]):
                return reason
            if any(given is None for given in found):  # a batch of which nothing decodes
                return None
            # One coin is tossed for a whole batch perhaps, and samples that were read cost nothing.
            found = found if len(found) > _READS else found * _READS
    return None


def warn_of_differences(trainer: L.Trainer, module: L.LightningModule, loader: Any, name: str) -> None:
    """Say that what a callback takes of training data is one of many versions of them."""
    if told_by(trainer).deterministic:
        return
    try:
        reason = what_differs(trainer, module, loader)
    except Exception:  # the pass over the data meets it, too, and knows what to do about it
        return
    if reason is not None and trainer.is_global_zero:
        warnings.warn(
            f"{name} takes training data as they come, and {reason}: its values are those of one version of many; give"
            ' the data without augmentation, by a datamodule with eval_dataloader("train")',
            stacklevel=2,
        )


class Witness:
    """What some samples of a loader looked like to the network, to be compared with later.

    Args:
        loader: Its dataset is read.
        number: Which of the loaders of its split it is.
        training: Whether hooks should see the stage that they see in training.
    """

    def __init__(self, loader: DataLoader[Any], number: int, training: bool) -> None:
        self.loader = loader
        self.number = number
        self.training = training
        self._rows = spread(len(loader.dataset), _WITNESSES)  # type: ignore[arg-type]
        self._seen: list[Any] | None = None

    def looks_different(self, trainer: L.Trainer, module: L.LightningModule) -> bool:
        """Read the samples; tell whether they have changed since they were first read."""
        with evaluating(trainer, module, training=self.training), numbers_as_they_come():
            samples = read_samples(self.loader.dataset, self._rows)
            batch = prepare_batch(trainer, module, self.loader.collate_fn(samples), self.number) if samples else None
        tensors = [leaf for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)]
        before, self._seen = self._seen, [_content(leaf) for leaf in tensors]
        return before not in (None, self._seen)


def spread(size: int, number: int) -> list[int]:
    """Return up to so many rows of a dataset, over all of it.

    Example:
        >>> spread(10, 4), spread(2, 4)
        ([0, 3, 6, 9], [0, 1])
    """
    if size <= number:
        return list(range(size))
    return [round(place * (size - 1) / (number - 1)) for place in range(number)]


def _first_batch(loader: Any) -> Any:
    if isinstance(loader, DataLoader):  # without its workers
        loader = DataLoader(loader.dataset, loader.batch_size, collate_fn=loader.collate_fn)
    return next(iter(loader), None)


def _same(first: Any, second: Any) -> bool:
    (some, kind), (others, other_kind) = tree_flatten(first), tree_flatten(second)
    return kind == other_kind and [_content(leaf) for leaf in some] == [_content(leaf) for leaf in others]


def _content(leaf: Any) -> Any:
    """Return what is the same of leaves that are the same, small enough to be kept."""
    if isinstance(leaf, Tensor):
        values = leaf.detach().contiguous().flatten().view(torch.uint8)  # as bytes, nan is itself
        return leaf.dtype, leaf.shape, hashlib.blake2b(values.cpu().numpy().data, digest_size=16).digest()
    if isinstance(leaf, np.ndarray) or hasattr(leaf, "tobytes"):  # images of Pillow
        return type(leaf), leaf.tobytes()
    compares = "__eq__" in {name for kind in type(leaf).__mro__[:-1] for name in vars(kind)}
    return type(leaf), leaf if compares else None  # nothing is known of plain objects


def _random_states() -> tuple[bytes, bytes, object]:
    return torch.get_rng_state().numpy().tobytes(), pickle.dumps(np.random.get_state()), random.getstate()
