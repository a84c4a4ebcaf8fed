"""What a method leaves frozen, kept as it was through a fit, whoever writes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nc_finetune._common.lightning_internals import averages
from nc_finetune.backbones import state_hash
from nc_finetune.callbacks.average_epochs import catch_up
from nc_finetune.passes.evaluation import is_sharded


def frozen_state(model: Any) -> dict[str, Tensor]:
    """Return every tensor of the backbone that a fit leaves as it is, by the names that the model gives them.

    Those are the parameters that the method does not tune, and all buffers but those of tuned modules in train mode:
    statistics of a BatchNorm in eval mode stay as well. Whether a parameter requires a gradient does not matter:
    another model on the same backbone may have changed that.

    Args:
        model: Anything with a ``backbone`` and a ``method``.

    Returns:
        Tensors by name, not copied; also buffers that no state dict holds.
    """
    backbone = model.backbone
    tuned = {id(parameter) for parameter in model.method.tuned_parameters(backbone)}
    learning = {part for module in model.method.tuned_modules(backbone) for part in module.modules() if part.training}
    frozen = {
        f"backbone.{name}": parameter for name, parameter in backbone.named_parameters() if id(parameter) not in tuned
    }
    return frozen | {
        f"backbone.{f'{prefix}.' if prefix else ''}{name}": buffer
        for prefix, part in backbone.named_modules()
        if part not in learning
        for name, buffer in part.named_buffers(recurse=False)
    }


class FrozenPart:
    """The frozen part of a model as it was when a fit began; between fits it holds nothing.

    Lightning's callbacks that average weights do so with all of a model, and that rounds; one of them resets the
    statistics of every BatchNorm. Buffers are put back from a copy. Parameters are written by way of the average
    alone, which gets their own values before it takes the model's place. What others write is found out by hashes.

    Args:
        model: An :class:`~nc_finetune.ImageClassifier`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._begun = False
        self._names: set[str] = set()
        self._hashes: dict[str, str] = {}
        self._buffers: dict[str, Tensor] = {}
        self._fixed: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Note it at the start of a fit, and hashes of it where a process has it all: 1 ms a megabyte."""
        hashed = {} if is_sharded(self.model.trainer.strategy) else frozen_state(self.model)
        self._hashes = {name: _hash(value) for name, value in hashed.items()}
        self._buffers = {name: value.clone() for name, value in self.model.backbone.named_buffers(prefix="backbone")}
        self._fixed = {}
        self._names = set(frozen_state(self.model))
        self._begun = True

    @torch.no_grad()
    def restore(self) -> None:
        """Put back the frozen buffers before an epoch; those of what is tuned from now on are let go of."""
        if not self._begun:
            self.begin()
        if not self._fixed:  # not earlier: a head may be aligned before the first epoch
            others = (pair for pair in self.model.named_buffers() if pair[0] not in self._buffers)
            self._fixed = {name: value.clone() for name, value in others}
        frozen = frozen_state(self.model)
        for name, value in frozen.items():
            if name in self._buffers:  # whether it has changed or not: to look would wait for the device
                value.copy_(self._buffers[name])

    def let_go(self) -> None:
        """Note what is frozen from now on, once the model is in the modes of an epoch; validation switches them."""
        self._names = set(frozen_state(self.model))
        self._hashes = {name: value for name, value in self._hashes.items() if name in self._names}

    @torch.no_grad()
    def align_averages(self) -> None:
        """Give averages of the model whatever has not moved since the fit began: frozen weights, a fixed head.

        Where no step is taken, as a head is solved, the average of all steps is the model.
        """
        if self._begun and (self.model.nothing_to_train or not self.model.method.trains):
            catch_up(self.model)
            return
        for average in averages(self.model.trainer.callbacks) if self._begun else ():
            copy = getattr(average, "module", average)
            theirs = {**dict(copy.named_parameters()), **dict(copy.named_buffers())}
            ours = dict(self.model.named_buffers())
            unmoved = {name: ours[name] for name, value in self._fixed.items() if torch.equal(ours[name], value)}
            frozen = {name: value for name, value in frozen_state(self.model).items() if name in self._names}
            for name, value in {**frozen, **unmoved}.items():
                theirs[name].copy_(value)

    def end(self) -> None:
        """Say at the end of a fit which frozen tensors are not what they were.

        Warns:
            UserWarning: If there are any.
        """
        state = frozen_state(self.model)
        changed = [name for name, known in self._hashes.items() if name not in state or _hash(state[name]) != known]
        self._begun, self._names, self._hashes, self._buffers, self._fixed = False, set(), {}, {}, {}
        if changed:
            warnings.warn(
                f"{len(changed)} tensors that {self.model.method.label} leaves frozen were written during the fit, e.g."
                f" {changed[0]}: look for a callback that writes weights, and let it leave them out",
                stacklevel=3,
            )


def check_thawed(model: Any, optimizers: Iterable[torch.optim.Optimizer]) -> bool:
    """Tell whether something frozen asks for a gradient; no optimizer may hold it.

    Raises:
        ValueError: If one does.
    """
    state = frozen_state(model)
    frozen = {id(value): name for name, value in state.items()}
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        if found := [frozen[id(value)] for value in group["params"] if id(value) in frozen]:
            raise ValueError(
                f"an optimizer holds {len(found)} parameters that {model.method.label} leaves frozen, e.g. {found[0]};"
                " leave out what has put them there, or choose a method that tunes them"
            )
    return any(value.requires_grad for value in state.values())


def _hash(value: Tensor) -> str:
    return state_hash({"": value})
