"""Solve a linear head in one pass over the training images, as a Lightning callback."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from nc_finetune._common.lightning_internals import is_attached
from nc_finetune.callbacks._discriminants import Seen, gather_features, solve_gathered
from nc_finetune.callbacks._feature_sums import Gathered
from nc_finetune.callbacks._solving import end_solved_epoch, leave_nothing_to_train, training_loader
from nc_finetune.functional.readout import ColumnChoice, SolvedHead
from nc_finetune.heads import DiscriminantHead, set_width_
from nc_finetune.methods import AUTO, FinetuningMethod, LayerReadout, NeighborsHead
from nc_finetune.passes.evaluation import refuse_sharded


class ReadoutSolver(L.Callback):
    """Pass the training images through the network, choose layers and shrinkage, and write the head.

    :class:`~nc_finetune.ImageClassifier` brings this callback along where its method is a
    :class:`~nc_finetune.methods.LayerReadout` that trains nothing, or another one whose head is solved, after which the
    fit ends, or its head a :class:`~nc_finetune.heads.DiscriminantHead` that waits, which is trained from there. It
    logs ``train/leave_one_out_accuracy``, ``train/shrinkage`` and ``train/temperature``, of what leaves its head
    ``train/loss`` too; of a probe ``train/folds_accuracy`` and ``train/l2`` in their place.

    Raises:
        ValueError: At the start of the fit, if labels are several, the strategy shards the network, a head that waits
            lies inside another one, or features are not finite.

    Attributes:
        solved: The head, and what leaving one out says of it; ``None`` before.
        leaves_its_head: Whether it is that of a method that trains nothing from there.
        choice: Of the layers; ``None`` where these were given.
        gathered: What the head was solved from, where :class:`~nc_finetune.callbacks.KeepStatistics` asks for it.

    Example:
        >>> from nc_finetune import ImageClassifier
        >>> ReadoutSolver.is_needed(ImageClassifier("test_vit", 10, weights=None, method=LayerReadout()))
        True
    """

    def __init__(self) -> None:
        self.solved: SolvedHead | None = None
        self.choice: ColumnChoice | None = None
        self.gathered: Gathered | None = None
        self._keeps = False
        self._unsaid: SolvedHead | None = None
        self.leaves_its_head = False

    def keep_features(self) -> None:
        """Keep what a readout is solved from until it is taken, so that nobody needs another pass for it."""
        self._keeps = True

    @staticmethod
    def is_needed(model: Any) -> bool:
        """Tell whether a model's head is to be solved, and nobody in its trainer does so yet."""
        there = is_attached(model) and any(isinstance(part, ReadoutSolver) for part in model.trainer.callbacks)
        return not there and (leaves_its_head(model) or bool(_waiting(model)))

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse what cannot be solved."""
        waiting = _waiting(pl_module)
        if not (waiting or leaves_its_head(pl_module)):
            return
        refuse_sharded(trainer, type(self).__name__)
        if pl_module.multilabel:
            what, instead = (
                ("DiscriminantHead", "take torch.nn.Linear")
                if waiting
                else (f"the head of {pl_module.method.label}", "train a head by LinearProbe or SkipProbe")
            )
            raise ValueError(
                f"{what} is solved for classes of which each image has one, and the loss takes several labels"
                f" an image; {instead}"
            )
        if waiting and waiting != [pl_module.head]:
            raise ValueError(
                "DiscriminantHead is solved from the features that the method gives, and here it is a part of a"
                f" {type(pl_module.head).__name__}; give it to the model itself, as head=DiscriminantHead"
            )

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Take the features, choose, and solve; of a readout leave nothing to train."""
        self.leaves_its_head = leaves_its_head(pl_module)
        if self.leaves_its_head:
            self._solve_readout(trainer, pl_module)
            leave_nothing_to_train(trainer, pl_module)
        elif _waiting(pl_module):
            solved = self._solve(trainer, pl_module, pl_module.head)
            pl_module.head.take_(solved.weight, solved.bias)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Log, and where nothing is trained validate and end the fit."""
        solved, self._unsaid = self._unsaid, None
        if solved is None:
            return
        values = {
            f"train/{solved.left_out}_accuracy": solved.accuracy,
            **{f"train/{name}": value for name, value in solved.settings.items()},
            "train/temperature": solved.temperature,
        }
        at_end = leaves_its_head(pl_module)
        pl_module.log_dict(values | ({"train/loss": solved.loss} if at_end else {}), batch_size=1)
        if at_end:
            end_solved_epoch(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Let other fits train."""
        self.gathered = None
        pl_module.nothing_to_train = False

    def _solve_readout(self, trainer: L.Trainer, model: Any) -> None:
        method = model.method
        if isinstance(method, LayerReadout) and method.layers_chosen:  # by another fit, of other images
            method.choose(AUTO)
        solved = self._solve(trainer, model, method)
        if isinstance(model.head, NeighborsHead):
            model.head.take_(solved)
            return
        if self.choice is not None:
            method.choose(self.choice.name)
            method.freeze(model.backbone)
        if solved.weight.shape != model.head.weight.shape:
            set_width_(model.head, solved.weight.shape[1])
        if self._keeps and self.gathered is not None and self.choice is not None and self.gathered.statistics is None:
            self.gathered = self.gathered._replace(features=self.gathered.features[:, self._columns[self.choice.name]])
        with torch.no_grad():
            model.head.weight.copy_(solved.weight)
            model.head.bias.copy_(solved.bias)

    def _solve(self, trainer: L.Trainer, model: Any, settings: Any) -> SolvedHead:
        seen = Seen.by(model.method, model.backbone, settings)
        loader = training_loader(trainer, model, type(self).__name__)
        gathered = gather_features(trainer, model, seen, loader)
        found = solve_gathered(gathered, seen, model.num_classes)
        self.choice, solved = trainer.strategy.broadcast(found)
        self.gathered, self._columns = (gathered, seen.groups) if self._keeps else (None, {})
        self.solved = self._unsaid = solved
        rank_zero_info(_in_words(model.method.label if self.leaves_its_head else "readout", self.choice, solved))
        return solved


def leaves_its_head(model: Any) -> bool:
    """Tell whether a model trains nothing, and its head stays as it is solved: that of a readout, or of a probe."""
    method = getattr(model, "method", None)
    return isinstance(method, FinetuningMethod) and method.solution is not None


def _waiting(model: Any) -> list[DiscriminantHead]:
    parts = (part for part in model.modules() if isinstance(part, DiscriminantHead))
    return [part for part in parts if part.awaits_solution]


def _in_words(label: str, choice: ColumnChoice | None, solved: SolvedHead) -> str:
    chosen = ""
    if choice is not None and choice.accuracies:
        tried = ", ".join(f"{name} {100 * value:.1f}" for name, value in choice.accuracies.items())
        chosen = f"{choice.name} (leaving one of {choice.samples} out: {tried} %), "
    elif choice is not None:
        chosen = f"{choice.name} (too many images to compare layers), "
    settings = "".join(f"{name} {value:g}, " for name, value in solved.settings.items())
    left_out = solved.left_out.replace("_", "-")
    return (
        f"{label}: {chosen}{settings}{left_out} accuracy {100 * solved.accuracy:.1f} % of {len(solved.logits)} images"
    )
