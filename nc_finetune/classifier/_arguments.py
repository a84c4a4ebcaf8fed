"""What an ImageClassifier is built from and fed with: what does not fit is refused in one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nc_finetune.backbones import Backbone
from nc_finetune.methods import FinetuningMethod
from nc_finetune.metrics import check_targets
from nc_finetune.passes.batches import INPUT_KEYS

DEFAULT_WEIGHTS = "default"
# Resizing by a cubic filter overshoots; normalised images and such in 0...255 lie far outside.
_LOWEST, _HIGHEST = -0.5, 2.0


def check_backbone(backbone: Any, weights: str | None) -> None:
    """Refuse what is neither a name nor a backbone, and weights beside a backbone that has its own.

    Raises:
        TypeError: For anything else, such as a model of timm.
        ValueError: For weights that nobody would load.
    """
    if isinstance(backbone, str):
        return
    if not isinstance(backbone, Backbone):
        is_class = inspect.isclass(backbone)
        given = f"the class {backbone.__name__}" if is_class else f"a {type(backbone).__name__}"
        raise TypeError(
            f"backbone must be a name, as 'resnet50' or 'open_clip:ViT-B-32', or a nc_finetune.backbones.Backbone, got"
            f" {given}; of a model of timm give its name, and its weights as weights='file.safetensors'"
        )
    if weights != DEFAULT_WEIGHTS:
        raise ValueError(
            f"weights={weights!r} were given beside a backbone that has its own ({backbone.weights!r}); build the"
            " backbone with them, or give its name"
        )


def check_method(method: Any) -> None:
    """Refuse what is no method, such as the class of one.

    Raises:
        TypeError: With the way out.
    """
    if method is None or isinstance(method, FinetuningMethod):
        return
    if inspect.isclass(method) and issubclass(method, FinetuningMethod):
        raise TypeError(f"method must be an object, got the class; write method={method.__name__}(...)")
    raise TypeError(f"method must be one of nc_finetune.methods, got {method!r}")


def check_head_factory(head: Any) -> None:
    """Refuse a classifier where what builds one is wanted.

    Raises:
        TypeError: With the way out.
    """
    if head is None or (callable(head) and not isinstance(head, nn.Module)):
        return
    given = f"a {type(head).__name__} that is built already" if isinstance(head, nn.Module) else repr(head)
    raise TypeError(
        f"head must build the classifier from the width of the feature and the number of classes, got {given}; give the"
        f" class, as torch.nn.Linear, a functools.partial of it, or lambda width, classes: ..."
    )


def check_head(head: Any) -> None:
    """Refuse what a factory built if it is no module.

    Raises:
        TypeError: With what came.
    """
    if not isinstance(head, nn.Module):
        raise TypeError(f"head must build a torch.nn.Module, it built a {type(head).__name__}")


def check_batch(batch: Any, num_classes: int, multilabel: bool, scale: bool = True) -> tuple[Tensor, Tensor]:
    """Return images and int64 labels of a batch, or refuse it, while it is still on the CPU and looking costs little.

    Args:
        batch: ``(images, labels)``.
        num_classes: K.
        multilabel: Labels have shape ``(N, K)``.
        scale: Look at the values of images, too.

    Raises:
        TypeError: If it is not two tensors.
        ValueError: If a shape or a value is out of range.
    """
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        parts = f" of {[type(part).__name__ for part in batch]}" if isinstance(batch, (tuple, list)) else ""
        raise TypeError(f"a batch must be (images, labels), two tensors; got {type(batch).__name__}{parts}")
    images, labels = batch
    check_images(images, scale)
    return images, check_targets(labels, len(images), num_classes, multilabel)


def check_images(images: Tensor, scale: bool = True) -> None:
    """Refuse images of another shape or scale; values are looked at on the CPU alone.

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
        return
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


def check_rates(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer with a learning rate of its own, which that of its groups would replace in silence.

    Raises:
        ValueError: With the way out.
    """
    given = optimizer.defaults.get("lr")
    parameter = inspect.signature(type(optimizer)).parameters.get("lr")
    rates = [group["lr"] for group in optimizer.param_groups]
    if given is None or parameter is None or given == parameter.default or given in rates:
        return
    raise ValueError(
        f"the optimizer was given lr={given}, and its groups have the rates {rates}, which count; leave lr out of it"
        f" and pass learning_rate={given} or head_learning_rate={given}"
    )
