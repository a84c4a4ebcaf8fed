"""What the optimizer gets: head, key layer and the rest of the backbone, each with its learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from nc_finetune.backbones import Backbone
from nc_finetune.methods.base import FinetuningMethod


def parameter_groups(
    backbone: Backbone,
    method: FinetuningMethod,
    others: Sequence[nn.Module],
    *,
    learning_rate: float | None,
    head_learning_rate: float,
    rest_learning_rate: float | None,
) -> list[dict[str, Any]]:
    """Build the parameter groups of an optimizer; what is empty gets none.

    Args:
        backbone: The network, frozen by the method.
        method: Says what its key layer is, and the rates that are not given.
        others: What else may be trained: head, loss.
        learning_rate: Rate of the key layer, of everything tuned where there is no key layer, or of the head where
            nothing else is tuned.
        head_learning_rate: Rate of the others beside a tuned backbone.
        rest_learning_rate: Rate of what is tuned beside a key layer.

    Returns:
        Up to three groups, ``"head"``, ``"block"`` and ``"backbone"``, each with ``params``, ``lr`` and ``name``.

    Raises:
        ValueError: If there is nothing to train.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> from nc_finetune.methods import LayerFinetuning
        >>> net, method, head = TimmBackbone("test_vit", None), LayerFinetuning("blocks.3"), nn.Linear(64, 10)
        >>> method.freeze(net)
        >>> rates = {"learning_rate": None, "head_learning_rate": 1e-3, "rest_learning_rate": None}
        >>> [(group["name"], group["lr"]) for group in parameter_groups(net, method, [head], **rates)]
        [('head', 0.001), ('block', 0.003)]
    """
    key = {id(parameter) for module in method.key_modules(backbone) for parameter in module.parameters()}
    tuned, beside_it = _trained(backbone), _trained(*others, method)  # a method may learn, too, as the scale of a skip
    block = [parameter for parameter in (*tuned, *beside_it) if id(parameter) in key]
    rest = [parameter for parameter in tuned if id(parameter) not in key]
    head = [parameter for parameter in beside_it if id(parameter) not in key]
    if not (tuned or beside_it):
        raise ValueError(
            f"there is nothing to train: the head has no parameters, and {method.label} tunes nothing else;"
            " choose another method"
        )
    default = method.default_learning_rate or head_learning_rate
    main = default if learning_rate is None else learning_rate
    beside = method.rest_learning_rate if rest_learning_rate is None else rest_learning_rate
    of_head = head_learning_rate if block or rest or learning_rate is None else learning_rate
    parts = (("head", head, of_head), ("block", block, main), ("backbone", rest, beside if block else main))
    return [{"params": part, "lr": rate, "name": name} for name, part, rate in parts if part]


def _trained(*parts: nn.Module) -> list[nn.Parameter]:
    return [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
