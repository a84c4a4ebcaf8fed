"""What any loss, of ours, of torch or of somebody else, wants for targets, and what its mean divides by."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from nc_finetune.losses.base import ClassificationLoss

# Of torch: one number a class and sample, each class on its own.
INDEPENDENT = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
_INSTEAD: dict[type[nn.Module], str] = {
    nn.NLLLoss: "takes log-probabilities, and heads give logits: use CrossEntropyLoss",
    nn.BCELoss: "takes probabilities, and heads give logits: use BCEWithLogitsLoss",
    nn.MSELoss: "takes numbers, and the data have labels: use nc_finetune.losses.RescaledMSELoss",
    nn.L1Loss: "takes numbers, and the data have labels: use nc_finetune.losses.RescaledMSELoss",
    nn.SmoothL1Loss: "takes numbers, and the data have labels: use nc_finetune.losses.RescaledMSELoss",
    nn.HuberLoss: "takes numbers, and the data have labels: use nc_finetune.losses.RescaledMSELoss",
    nn.MultiLabelMarginLoss: "takes lists of labels: use PickAllLabelsLoss or BCEWithLogitsLoss",
    nn.KLDivLoss: "takes distributions: use CrossEntropyLoss",
}


def check_loss(loss: Any) -> None:
    """Refuse what is no loss of logits and labels.

    Args:
        loss: A module; ``None`` stands for the default.

    Raises:
        TypeError: If it is a function, a class, or a loss of something else.
        ValueError: If it gives a value a sample.

    Example:
        >>> check_loss(nn.BCELoss())
        Traceback (most recent call last):
            ...
        TypeError: BCELoss takes probabilities, and heads give logits: use BCEWithLogitsLoss
    """
    if loss is None:
        return
    if not isinstance(loss, nn.Module):
        name = getattr(loss, "__name__", repr(loss))
        way = f"write loss={name}()" if inspect.isclass(loss) else "give its module, as torch.nn.CrossEntropyLoss()"
        raise TypeError(f"loss must be a module that takes logits and labels, got {name}; {way}")
    for inner in _unwrapped(loss):
        if type(inner) in _INSTEAD:
            raise TypeError(f"{type(inner).__name__} {_INSTEAD[type(inner)]}")
        if getattr(inner, "reduction", "mean") == "none":
            raise ValueError(f"{type(inner).__name__} must give one number, not one a sample; leave reduction out")


def takes_several_labels(loss: nn.Module) -> bool:
    """Tell whether targets are vectors of 0 and 1, ``(N, K)``: what the loss says of itself, or is known of torch's.

    Example:
        >>> takes_several_labels(nn.BCEWithLogitsLoss()), takes_several_labels(nn.CrossEntropyLoss())
        (True, False)
    """
    said = getattr(loss, "multilabel", None)
    return has_independent_classes(loss) if said is None else bool(said)


def has_independent_classes(loss: nn.Module) -> bool:
    """Tell whether the loss trains a probability of its own for each class, a sigmoid of its logit."""
    return any(isinstance(inner, INDEPENDENT) for inner in _unwrapped(loss))


def loss_value(loss: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of a batch; torch's losses of several labels get floats, which they want."""
    value: Tensor = loss(logits, labels.to(logits.dtype) if has_independent_classes(loss) else labels)
    return value


def mean_and_weight(loss: nn.Module, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean loss of a batch and what it weighs, so that means of batches of any size add up to that of all.

    With class weights a mean divides by the weights of the samples, not by their number; a batch in which these are all
    zero counts nothing. A loss that sums is divided by the number of samples.

    Args:
        loss: Any loss of one number.
        logits: Shape ``(N, K)``.
        labels: Shape ``(N,)``, or ``(N, K)``.

    Returns:
        Two scalars.

    Example:
        >>> loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
        >>> [value.item() for value in mean_and_weight(loss, torch.zeros(2, 2), torch.tensor([0, 1]))]
        [0.693..., 4.0]
    """
    number = torch.tensor(float(len(labels)), device=logits.device)
    value = loss_value(loss, logits, labels)
    innermost = list(_unwrapped(loss))[-1]
    if getattr(innermost, "reduction", "mean") == "sum":
        return value / number, number
    weight = getattr(innermost, "weight", None)
    counted = torch.ones_like(labels, dtype=torch.float32)
    if labels.ndim == 1 and _divides_by_weights(innermost):
        if isinstance(weight, Tensor):
            counted = weight.float()[labels]
        counted = counted * (labels != getattr(innermost, "ignore_index", -1))
        number = counted.sum()
    return torch.where(number > 0, value, torch.zeros_like(value)), number


def match_loss_state(loss: nn.Module, state: dict[str, Tensor], prefix: str = "loss.") -> None:
    """Make the state of a checkpoint fit a loss whose class weights are others, or not known yet.

    Class weights are numbers of the training data and no result of training: those that the loss does not have are
    taken over where it waits for some, as ClassBalanced does, and left out otherwise; those that the checkpoint lacks
    stay as they are.

    Args:
        loss: The loss of the model that is loaded.
        state: State dict of the checkpoint; changed.
        prefix: What the names of the loss begin with.
    """
    own = loss.state_dict()
    for name in [name.removeprefix(prefix) for name in state if name.startswith(prefix)]:
        if name in own:
            continue
        module = _submodule(loss, name.rpartition(".")[0])
        if module is not None and module._buffers.get(name.rpartition(".")[2], state) is None:
            setattr(module, name.rpartition(".")[2], state[prefix + name].clone())
        else:
            del state[prefix + name]
    buffers = dict(loss.named_buffers())
    state.update(
        {prefix + name: value for name, value in buffers.items() if name in own and prefix + name not in state}
    )


def _submodule(module: nn.Module, name: str) -> nn.Module | None:
    return dict(module.named_modules()).get(name)


def _divides_by_weights(loss: nn.Module) -> bool:
    return isinstance(loss, (nn.CrossEntropyLoss, ClassificationLoss))


def _unwrapped(loss: nn.Module) -> list[nn.Module]:
    """Return a loss and those inside it, as of ClassBalanced, outermost first."""
    found = [loss]
    while isinstance(inner := getattr(found[-1], "loss", None), nn.Module):
        found.append(inner)
    return found
