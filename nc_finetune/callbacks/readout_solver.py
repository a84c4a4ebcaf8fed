"""Solve the head of a readout in one pass over the training images, as a Lightning callback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from nc_finetune._common.lightning_internals import is_attached
from nc_finetune.callbacks._feature_sums import FeatureSums
from nc_finetune.callbacks._solving import (
    end_solved_epoch,
    feature_batches,
    leave_nothing_to_train,
    training_loader,
)
from nc_finetune.functional.class_statistics import MAX_SCATTER_FEATURES
from nc_finetune.functional.readout import ColumnChoice, SolvedHead, choose_columns, solve_head
from nc_finetune.methods import AUTO, LayerReadout
from nc_finetune.passes.evaluation import refuse_sharded

PREFERRED = "later_half"


class ReadoutSolver(L.Callback):
    """Pass the training images through the network, choose layers and shrinkage, and write the head.

    :class:`~nc_finetune.ImageClassifier` brings this callback along where its method is a
    :class:`~nc_finetune.methods.LayerReadout` that trains nothing. It logs ``train/loss``,
    ``train/leave_one_out_accuracy``, ``train/shrinkage`` and ``train/temperature``, and ends the fit.

    Attributes:
        solved: The head, and what leaving one out says of it; ``None`` before.
        choice: Of the layers; ``None`` where these were given.

    Example:
        >>> from nc_finetune import ImageClassifier
        >>> ReadoutSolver.is_needed(ImageClassifier("test_vit", 10, weights=None, method=LayerReadout()))
        True
    """

    def __init__(self) -> None:
        self.solved: SolvedHead | None = None
        self.choice: ColumnChoice | None = None

    @staticmethod
    def is_needed(model: Any) -> bool:
        """Tell whether the method of a model leaves the head to be solved, and nobody in its trainer does so yet."""
        method = getattr(model, "method", None)
        there = is_attached(model) and any(isinstance(part, ReadoutSolver) for part in model.trainer.callbacks)
        return isinstance(method, LayerReadout) and not method.trains and not there

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse strategies that shard the network, and labels that are several.

        Raises:
            ValueError: Then.
        """
        refuse_sharded(trainer, type(self).__name__)
        if pl_module.multilabel:
            raise ValueError(
                "a readout is the discriminant of classes of which each image has one, and the loss takes several"
                " labels an image; train a head by LinearProbe or SkipProbe"
            )

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Take the features, choose, solve, and leave nothing to train."""
        method: LayerReadout = pl_module.method
        if method.layers_chosen:  # by another fit, of other images
            method.choose(AUTO)
        self.choice, self.solved = trainer.strategy.broadcast(self._solve(trainer, pl_module))
        if self.choice is not None:
            method.choose(self.choice.name)
            method.freeze(pl_module.backbone)
        self._write(pl_module)
        leave_nothing_to_train(trainer, pl_module)
        rank_zero_info(_in_words(self.choice, self.solved))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Validate, and end the fit."""
        if self.solved is None:
            return
        values = {
            "train/loss": self.solved.loss,
            "train/leave_one_out_accuracy": self.solved.accuracy,
            "train/shrinkage": self.solved.shrinkage,
            "train/temperature": self.solved.temperature,
        }
        pl_module.log_dict(values, batch_size=1)
        end_solved_epoch(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Let other fits train."""
        pl_module.nothing_to_train = False

    def _solve(self, trainer: L.Trainer, model: Any) -> tuple[ColumnChoice | None, SolvedHead]:
        method, backbone, classes = model.method, model.backbone, model.num_classes
        rank, ranks = trainer.global_rank, trainer.world_size
        groups = method.columns(backbone)
        sums = FeatureSums(
            method.num_features(backbone), classes, lambda: groups[_widest(groups)], rank, ranks, device=model.device
        )
        loader = training_loader(trainer, model, type(self).__name__)
        for features, labels in feature_batches(trainer, model, loader, rank, ranks):
            sums.add(features, labels)
        found = sums.gather()
        how = {"shrinkage": method.shrinkage, "priors": method.priors}
        if found.statistics is not None:
            name = _widest(groups)
            _check_finite(found.statistics.means, groups[name], method.widths(backbone))
            choice = ColumnChoice(name, {}, 0) if len(groups) > 1 else None
            return choice, solve_head(found.statistics, found.labels, classes, samples=found.features, **how)
        _check_finite(found.features, torch.arange(found.features.shape[1]), method.widths(backbone))
        if len(groups) == 1:
            return None, solve_head(found.features, found.labels, classes, **how)
        choice = choose_columns(found.features, found.labels, classes, groups, PREFERRED, **how)
        return choice, solve_head(found.features[:, groups[choice.name]], found.labels, classes, **how)

    def _write(self, model: Any) -> None:
        if self.solved is None:
            return
        head, weight = model.head, self.solved.weight
        if weight.shape != head.weight.shape:
            model.head = head = model.method.own_head(weight.shape[1], weight.shape[0]).to(head.weight)
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(self.solved.bias)


def _widest(groups: Mapping[str, Tensor]) -> str:
    """Return the group that a scatter has room for: the preferred one, or the widest.

    Raises:
        ValueError: If there is room for none.
    """
    fitting = {name: len(columns) for name, columns in groups.items() if len(columns) <= MAX_SCATTER_FEATURES}
    if not fitting:
        raise ValueError(
            f"so many images need layers of at most {MAX_SCATTER_FEATURES} features together, these have"
            f" {min(map(len, groups.values()))}; name fewer layers, or pool by 'mean' alone"
        )
    return PREFERRED if PREFERRED in fitting else max(fitting, key=lambda name: fitting[name])


def _check_finite(values: Tensor, columns: Tensor, widths: Mapping[str, int]) -> None:
    """Refuse features that are not finite, by the name of their layer."""
    bad = ~values.isfinite().all(0)
    if not bad.any():
        return
    place, ends = int(columns[int(bad.nonzero()[0])]), torch.tensor(list(widths.values())).cumsum(0)
    layer = list(widths)[int((ends <= place).sum())]
    raise ValueError(
        f"features of layer {layer!r} must be finite, got nan or infinity; look for broken images, leave the layer out,"
        " or run in another precision"
    )


def _in_words(choice: ColumnChoice | None, solved: SolvedHead) -> str:
    chosen = ""
    if choice is not None and choice.accuracies:
        tried = ", ".join(f"{name} {100 * value:.1f}" for name, value in choice.accuracies.items())
        chosen = f"{choice.name} (leaving one of {choice.samples} out: {tried} %), "
    elif choice is not None:
        chosen = f"{choice.name} (too many images to compare layers), "
    return (
        f"readout: {chosen}shrinkage {solved.shrinkage:g}, leave-one-out accuracy {100 * solved.accuracy:.1f} % of"
        f" {len(solved.logits)} images"
    )
