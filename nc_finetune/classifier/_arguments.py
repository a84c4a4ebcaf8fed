"""What an ImageClassifier is built from: what does not fit is refused in one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from nc_finetune.backbones import Backbone
from nc_finetune.losses import check_loss
from nc_finetune.methods import FinetuningMethod

DEFAULT_WEIGHTS = "default"
HeadFactory = Callable[[int, int], nn.Module]


def check_parts(backbone: Any, weights: str | None, method: Any, head: Any, loss: Any) -> None:
    """Refuse what no model can be built from, before anything is built.

    Raises:
        TypeError: If a part is of another kind, such as a class where an object belongs.
        ValueError: If weights are given that nobody would load.
    """
    _check_backbone(backbone, weights)
    _check_method(method)
    _check_head_factory(head)
    check_loss(loss)


def choose_head(method: FinetuningMethod, given: HeadFactory | None) -> HeadFactory:
    """Return what builds the classifier: what was given, or the method's own, or ``torch.nn.Linear``.

    Raises:
        ValueError: If a head was given beside the method's own.
    """
    if given is not None and method.own_head is not None:
        raise ValueError(f"{method.label} brings its own head, got another one, {given}; leave head out")
    return given or method.own_head or nn.Linear


def build_head(build: HeadFactory, in_features: int, num_classes: int) -> nn.Module:
    """Build the classifier.

    Raises:
        TypeError: If no module comes out.
    """
    head: Any = build(in_features, num_classes)
    if not isinstance(head, nn.Module):
        raise TypeError(f"head must build a torch.nn.Module, it built a {type(head).__name__}")
    return head


def _check_backbone(backbone: Any, weights: str | None) -> None:
    """Refuse what is neither a name nor a backbone, and weights beside a backbone that has its own."""
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


def _check_method(method: Any) -> None:
    """Refuse what is no method, such as the class of one."""
    if method is None or isinstance(method, FinetuningMethod):
        return
    if inspect.isclass(method) and issubclass(method, FinetuningMethod):
        raise TypeError(f"method must be an object, got the class; write method={method.__name__}(...)")
    raise TypeError(f"method must be one of nc_finetune.methods, got {method!r}")


def _check_head_factory(head: Any) -> None:
    """Refuse a classifier where what builds one is wanted."""
    if head is None or (callable(head) and not isinstance(head, nn.Module)):
        return
    given = f"a {type(head).__name__} that is built already" if isinstance(head, nn.Module) else repr(head)
    raise TypeError(
        f"head must build the classifier from the width of the feature and the number of classes, got {given}; give the"
        f" class, as torch.nn.Linear, a functools.partial of it, or lambda width, classes: ..."
    )
