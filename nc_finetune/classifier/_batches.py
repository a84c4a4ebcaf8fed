"""What an ImageClassifier is fed with: what does not fit is refused in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nc_finetune.metrics import check_targets
from nc_finetune.passes.batches import INPUT_KEYS, unpack_batch

# Resizing by a cubic filter overshoots; normalised images and such in 0...255 lie far outside.
_LOWEST, _HIGHEST = -0.5, 2.0


def labelled_images(batch: Any, num_classes: int, multilabel: bool, scale: bool = True) -> tuple[Tensor, Tensor]:
    """Return images and int64 labels of a batch, or refuse it, while it is still on the CPU and looking costs little.

    Args:
        batch: ``(images, labels)``, or a mapping with both.
        num_classes: K.
        multilabel: Labels have shape ``(N, K)``.
        scale: Look at the values of images, too.

    Raises:
        TypeError: If it is not two tensors.
        ValueError: If a shape or a value is out of range.
    """
    pair: Any = unpack_batch(batch) if isinstance(batch, Mapping) else batch
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair)):
        parts = f" of {[type(part).__name__ for part in pair]}" if isinstance(pair, (tuple, list)) else ""
        raise TypeError(f"a batch must be (images, labels), two tensors; got {type(pair).__name__}{parts}")
    images, labels = pair
    return check_images(images, scale), check_targets(labels, len(images), num_classes, multilabel)


def check_images(images: Tensor, scale: bool = True) -> Tensor:
    """Return images, or refuse those of another shape or scale; values are looked at on the CPU alone.

    Args:
        images: Shape ``(N, C, H, W)``, uint8 in 0...255 or floating point in 0...1, a little over- and undershoot of a
            filter allowed.
        scale: Look at the values, too; hooks of a user may scale images as the backbone wants them.

    Raises:
        TypeError: If they are integers other than uint8.
        ValueError: If the shape is another, or values are not finite, normalised already, or floats in 0...255.
    """
    if images.ndim != 4:
        raise ValueError(f"images must have shape (N, 3, H, W), got {tuple(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images must be uint8 in 0...255 or floating point in 0...1, got {images.dtype}")
    if not scale or images.dtype == torch.uint8 or images.device.type != "cpu" or not images.numel():
        return images
    lowest, highest = (value.item() for value in images.detach().aminmax())
    if not (lowest > -torch.inf and highest < torch.inf):
        raise ValueError("images must be finite, some values are nan or infinite; look for broken images or transforms")
    if lowest < _LOWEST:
        raise ValueError(
            f"images of floats must lie in 0...1, got {lowest:.3g} to {highest:.3g}: normalised already, as it seems;"
            " leave the normalisation out, the backbone does what its weights want"
        )
    if highest > _HIGHEST:
        raise ValueError(
            f"images of floats must lie in 0...1, got {lowest:.3g} to {highest:.3g}; divide by 255, or keep them uint8"
        )
    return images


def images_of(batch: Any) -> Any:
    """Return the images of a batch that is predicted: images alone, or with whatever follows them.

    Raises:
        TypeError: If there is no tensor where the images belong.
    """
    found = batch
    if isinstance(batch, Mapping):
        found = next((batch[key] for key in INPUT_KEYS if key in batch), None)
    elif isinstance(batch, (tuple, list)) and batch:
        found = batch[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"a batch must be images, or (images, ...), tensors; got {type(batch).__name__}")
    return found
