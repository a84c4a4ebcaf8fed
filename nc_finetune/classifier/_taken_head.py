"""The head that a model predicts by since its fit has ended, in turn with the one that is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from nc_finetune._common.lightning_internals import is_attached
from nc_finetune.classifier.checkpoint import TRAINING_KEY
from nc_finetune.files.class_config import build, describe, describe_if_possible
from nc_finetune.files.delta_io import CHECKPOINT_KEY
from nc_finetune.methods import FinetuningMethod, LayerReadout


class _Parts(NamedTuple):
    method: FinetuningMethod
    head: nn.Module
    config: Any

    def fits(self, described: Mapping[str, Any], state: Mapping[str, Any] | None) -> bool:
        """Tell whether a file is of these: by its description, and where that has gaps by the shapes in it."""
        ours, theirs = (describe_if_possible(self.method), self.config), (described["method"], described["head"])
        if None not in (*ours, *theirs):
            return ours == theirs
        own = {f"head.{name}": value.shape for name, value in self.head.state_dict().items()}
        return state is None or own == {name: state[name].shape for name in state if name.startswith("head.")}


class TakenHead:
    """What :class:`~nc_finetune.callbacks.SolveHead` has taken in place of the trained head, with its method.

    A fit goes on with the trained one, whoever begins it, and a file of either is loaded onto the one that it is of.

    Args:
        model: An :class:`~nc_finetune.ImageClassifier`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._trained: _Parts | None = None
        self._taken: _Parts | None = None

    @property
    def is_used(self) -> bool:
        """Whether the model predicts by it."""
        return self._taken is not None and self.model.head is self._taken.head

    @property
    def trained(self) -> nn.Module:
        """The head that is trained, whether or not the model predicts by it."""
        head: nn.Module = self._trained.head if self.is_used and self._trained else self.model.head
        return head

    def take(self, method: FinetuningMethod, head: nn.Module, config: Any) -> None:
        """Predict by a head from now on.

        Args:
            method: Gives the features that it sees.
            head: Takes them.
            config: How the head is built, as :attr:`~nc_finetune.files.ModelConfig.head`.
        """
        if not self.is_used:
            self._trained = self._in_use
        self._taken = _Parts(method, head, config)
        self._use(self._taken)

    def use_again(self) -> None:
        """Predict by what was taken before, if anything was: a fit has trained nothing."""
        if self._taken is not None and not self.is_used:
            self._use(self._taken)

    def put_back(self) -> None:
        """Put the trained head back."""
        if self.is_used and self._trained is not None:
            self._use(self._trained)

    def follow(self, content: Mapping[str, Any]) -> None:
        """Use the one that a checkpoint, or the description of a delta, is of; of two that are alike the trained one.

        What was taken after another fit of such a model is built as the file says.

        Raises:
            ValueError: If a fit is to go on from a head that was taken after one, or the description is not trusted.
        """
        described, state = content.get(CHECKPOINT_KEY), content.get("state_dict")
        if described is None:
            return
        is_taken = described.get("taken_after_fit", False)
        is_resumed = TRAINING_KEY in content and is_attached(self.model) and self.model.trainer.state.fn == "fit"
        if is_taken and is_resumed:
            raise ValueError(
                "the checkpoint was written after a fit and holds the head that SolveHead took there; resume from one"
                " that was written during the fit, or begin anew from ImageClassifier.load_from_checkpoint(path)"
            )
        trained = self._trained if self.is_used and self._trained else self._in_use
        if trained.fits(described, state):
            self.put_back()
        elif self._taken is not None and self._taken.fits(described, state):
            self.use_again()
        elif is_taken and (built := self._built(trained, described)) is not None:
            self._trained, self._taken = trained, built
            self._use(built)

    @property
    def _in_use(self) -> _Parts:
        return _Parts(self.model.method, self.model.head, self.model.head_config)

    def _built(self, trained: _Parts, described: Mapping[str, Any]) -> _Parts | None:
        """Build what was taken after a fit like that of this model; ``None`` of another one, or what has gaps."""
        own, theirs, head = describe_if_possible(trained.method), described["method"], described["head"]
        if None in (own, theirs, head):
            return None
        method = trained.method
        if theirs != own:
            arguments = theirs.get("init_args", {})
            if theirs.get("class_path") != describe(LayerReadout)["class_path"] or arguments.get("method") != own:
                return None
            method = LayerReadout(**build({**arguments, "method": None}) | {"method": trained.method})
        factory = build(head)
        return _Parts(method, factory(method.num_features(self.model.backbone), self.model.num_classes), head)

    def _use(self, parts: _Parts) -> None:
        model, like = self.model, next(iter(self.model.backbone.parameters()))
        model.method, model.head, model.head_config = parts.method, parts.head.to(like), parts.config
        model.train(model.training)
        model.tell_hyperparameters()
