"""The frozen part of a model below what it tunes: run once a sample, and gone on from later."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nc_finetune.backbones._split.layer_inputs import SplitError
from nc_finetune.backbones._split.split import PrefixOutput, SplitBackbone
from nc_finetune.backbones.hashes import module_key

# Where weights are from, and what they were before, says nothing that they do not say themselves.
_NOT_IN_THE_KEY = ("weights", "base_hash", "_source")


class FrozenPrefix(SplitBackbone):
    """The backbone of a model, cut before what its method tunes, and tried out.

    ``model.split = FrozenPrefix(model, images)`` lets the steps of an :class:`~nc_finetune.ImageClassifier` take what
    :meth:`prefix` gave in place of images; ``model.split = None`` ends that.

    Args:
        model: Anything with a ``backbone`` and a ``method``; in eval mode.
        images: Some of those that it will be used with, shape ``(N, 3, H, W)``.

    Raises:
        SplitError: If there is no frozen prefix, or the network cannot be cut there.

    Example:
        >>> from nc_finetune import ImageClassifier
        >>> model, images = ImageClassifier("test_resnet", 10, weights=None).eval(), torch.rand(4, 3, 32, 32)
        >>> split = FrozenPrefix(model, images)
        >>> with resumed(split.prefix(images), split) as blanks:
        ...     logits = model(blanks)
        >>> split.cut, torch.equal(logits, model(images))
        ('penultimate', True)
    """

    def __init__(self, model: Any, images: Tensor) -> None:
        method, backbone = model.method, model.backbone
        first = method.first_tuned_layer(backbone)
        if first is None:
            raise SplitError(f"{method.label} leaves no frozen prefix of {backbone.name!r}")
        super().__init__(
            backbone,
            first,
            method.skip_sources(backbone),
            input_layers=method.input_sources(backbone),
            image_shape=images.shape[1:],
            pooling=method.pooling,
        )
        self._model = model
        self.check(images, partial(method.features, backbone))

    def key(self) -> str:
        """Return a hash of all that the outputs of what is frozen follow from, as it is now; not of where the cut is.

        Models that tune different things above the same cut have the same one.
        """
        if self._model.training:
            self._model.train()  # another model on the same backbone may have switched modes
        method = self._model.method
        tuned = [part for module in method.tuned_modules(self.backbone) for part in module.modules()]
        buffers = [value for part in tuned for value in part.buffers(recurse=False)]
        trained = method.tuned_parameters(self.backbone)
        key = module_key(self.backbone, tuned, [*buffers, *trained], _NOT_IN_THE_KEY)
        return f"{self.backbone.name} {key} {self.device.type} {torch.get_float32_matmul_precision()}"

    def holds(self, batch: Any) -> bool:
        """Tell whether a batch is what :meth:`prefix` gave, with labels, and not images."""
        first = batch[0] if isinstance(batch, (tuple, list)) and batch else None
        return isinstance(first, dict) and self.cut in first


def resumed(inputs: Tensor | PrefixOutput, split: SplitBackbone | None) -> AbstractContextManager[Tensor]:
    """Return a context that gives what a model is to be called with, once, inside of it.

    Args:
        inputs: Images, which come out as they are, or what the prefix of a network gave, from which it goes on.
        split: That network.

    Raises:
        ValueError: If outputs of a prefix come, and there is no such network.
    """
    if not isinstance(inputs, dict):
        return nullcontext(inputs)
    if split is None:
        raise ValueError("outputs of the frozen prefix came, but the network is not split; set split first")
    return split.resume(inputs)
