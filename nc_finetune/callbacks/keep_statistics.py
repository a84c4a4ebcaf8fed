"""Keep what is known of the training images with the model, as a Lightning callback."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from nc_finetune.callbacks._discriminants import Seen, gather_features, solve_gathered
from nc_finetune.callbacks._feature_sums import Gathered
from nc_finetune.callbacks._solving import training_loader, validation_loader
from nc_finetune.callbacks.average_epochs import catch_up
from nc_finetune.callbacks.best_epoch import BestEpoch
from nc_finetune.callbacks.delta_checkpoint import DeltaCheckpoint
from nc_finetune.callbacks.readout_solver import ReadoutSolver, leaves_its_head
from nc_finetune.callbacks.solve_head import SolveHead
from nc_finetune.doubt import DoubtState
from nc_finetune.doubt.taking import RANK, take_state
from nc_finetune.files.delta import read_delta, save_delta, tuned_state
from nc_finetune.files.delta_io import DELTA_SUFFIX
from nc_finetune.methods import LayerReadout
from nc_finetune.passes.evaluation import refuse_sharded


class KeepStatistics(L.Callback):
    """At the end of any fit keep class means and scatter of the training images, by which the model knows its doubts.

    One pass over the training images, without augmentation where the data can do without, gives the statistics of what
    the head sees; of a readout the pass is there already. They tell how far an image lies from the training images, as
    the share of those that lie further out; beyond 95 % of them is a stranger. Validation images, and for a readout
    leaving training images out, give one temperature for the probabilities, and how likely a class has to be to belong
    to a set that holds the right one in 90 % of cases. From then on the model has them as ``model.doubt``, and so has
    every file of it: ``nc-finetune predict`` and ``export --doubt`` use them. A further fit forgets them.

    A tuned network has drawn its training images together, and new images look stranger than they are: its distances
    are compared with those of validation images. Where there are none, training images are left out, with a warning.
    Without validation images probabilities stay as they are, and there are no sets. It comes after :class:`SolveHead`,
    :class:`BestEpoch` and averages of weights; of a mean with the readout of the network as it was, what this one sees
    counts. Deltas that :class:`DeltaCheckpoint`, :class:`BestEpoch` or :class:`SolveHead` have written of the weights
    that are left are written again with the statistics; ordinary checkpoints of before have none.

    Where features are not finite or have collapsed to a point there are no statistics, with a warning.

    Args:
        rank: How many eigenvectors of the scatter are kept, at least 1; see :func:`~nc_finetune.doubt.take_state`.
            Files grow by ``(K + rank) (D + 1)`` numbers and some 4,000 of tables.

    Raises:
        ValueError: If ``rank`` is out of range; at the start of a fit, if images have several labels, the strategy
            shards the network, or there are two of these callbacks.
        TypeError: At the start of a fit, if the module is no :class:`~nc_finetune.ImageClassifier`.

    Attributes:
        passes: How many passes over the training images were needed: 0 of a readout.

    Source:
        Lee et al. 2018, arXiv:1807.03888; Ren et al. 2021, arXiv:2106.09022; sets: Sadinle et al. 2019,
        arXiv:1609.00451.

    Example:
        >>> KeepStatistics(rank=32).rank
        32
    """

    def __init__(self, rank: int = RANK) -> None:
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.rank = rank
        self.passes = 0
        self._begun = False

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse what has no statistics, and ask a readout for what it sees."""
        if stage != "fit":
            return
        name = type(self).__name__
        refuse_sharded(trainer, name)
        if not hasattr(pl_module, "doubt"):
            raise TypeError(f"{name} needs an ImageClassifier, got {type(pl_module).__name__}")
        if sum(isinstance(part, KeepStatistics) for part in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise ValueError(
                f"there are several {name}, and a model keeps one set of statistics; leave all but one out"
            )
        if pl_module.multilabel:
            raise ValueError(
                f"{name} keeps means of classes of which each image has one, and the loss takes several labels an"
                " image; leave it out"
            )
        self._begun = False
        if (solver := _readout_solver(trainer, pl_module)) is not None:
            solver.keep_features()

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Note that something is trained."""
        self._begun = True

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Take the statistics; on the best epoch, where that is put back."""
        for part in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(part, BestEpoch):
                part.on_train_end(trainer, pl_module)
        self._take(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Take them, too, where there was nothing left to train."""
        if self._begun:
            return
        for part in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(part, BestEpoch):
                part.on_fit_end(trainer, pl_module)
        self._take(trainer, pl_module)

    def _take(self, trainer: L.Trainer, model: Any) -> None:
        model.doubt, self.passes = None, 0
        solver = _readout_solver(trainer, model)
        try:
            if solver is not None and solver.gathered is not None and solver.solved is not None:
                state = self._of_readout(solver.gathered, solver, model)
            else:
                state = self._of_pass(trainer, model)
        except ValueError as error:  # the same in all processes, which have gathered the same
            _warn(trainer, f"keeps no statistics: {error}")
            return
        tensors = trainer.strategy.broadcast({name: value.cpu() for name, value in state.state_dict().items()})
        model.doubt = DoubtState(tensors).to(model.device)
        catch_up(model)  # checkpoints hold averages
        self._tell(trainer, model.doubt)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            _write_again(trainer, model)

    def _of_readout(self, gathered: Gathered, solver: ReadoutSolver, model: Any) -> DoubtState:
        features, labels, statistics = gathered
        solved = solver.solved
        assert solved is not None  # noqa: S101 - what calls this has looked
        solver.gathered = None
        return take_state(
            features,
            labels,
            model.num_classes,
            shrinkage=solved.shrinkage,
            statistics=statistics,
            logits=solved.logits,
            rank=self.rank,
        )

    def _of_pass(self, trainer: L.Trainer, model: Any) -> DoubtState:
        self.passes = 1
        look = _Look.at(model)
        name = type(self).__name__
        cached = not (model.taken_head.is_used and isinstance(model.method, LayerReadout))
        seen = Seen({"given": torch.arange(look.width)}, {"given": look.width}, {"shrinkage": None, "priors": "equal"})
        loader = training_loader(trainer, model, name, cached=cached)
        gathered = gather_features(trainer, model, seen, loader, lambda inputs: model.features(inputs)[:, : look.width])
        validation = _validation(trainer, model, look.width, cached)
        with warnings.catch_warnings():  # of a head that is solved for its shrinkage alone
            warnings.filterwarnings("ignore", message="there (is no sample of class|are too few samples)")
            _, solved = solve_gathered(gathered, seen, model.num_classes)
        features, labels, statistics = gathered
        return take_state(
            features,
            labels,
            model.num_classes,
            shrinkage=solved.shrinkage,
            statistics=statistics,
            validation=validation,
            is_tuned=look.is_tuned,
            rank=self.rank,
        )

    def _tell(self, trainer: L.Trainer, state: DoubtState) -> None:
        if not state.has_distances:
            _warn(
                trainer,
                "cannot leave an image out, since without it no class has two of them: distances have no measure",
            )
        elif state.is_too_sure:
            _warn(
                trainer,
                "found no validation images, and the network was tuned on the training images, which lie closer than"
                " new ones do: these will look stranger than they are; hold some out (val_size)",
            )
        if not state.has_scores:
            _warn(
                trainer,
                "found no images that the model was not trained on: probabilities stay as they are, and there are no"
                " sets; hold some out (val_size)",
            )
        distances, scores = state.numbers.tolist()
        rank_zero_info(
            f"{type(self).__name__}: distances of {distances} images, temperature"
            f" {float(state.temperature):.3g} by {scores} images"
        )


class _Look(NamedTuple):
    """Which features are looked at: how many of the first ones, and whether the network that gives them was tuned."""

    width: int
    is_tuned: bool

    @classmethod
    def at(cls, model: Any) -> _Look:
        method, backbone = model.method, model.backbone
        if isinstance(method, LayerReadout) and method.frozen:
            return cls(sum(map(sum, method.pieces(backbone).values())), False)
        own = (parameter.requires_grad for parameter in method.parameters())
        return cls(method.num_features(backbone), any(own) or any(True for _ in method.tuned_parameters(backbone)))


def _validation(trainer: L.Trainer, model: Any, width: int, cached: bool) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return features, logits and labels of the validation images; ``None`` where there are none."""
    loader = validation_loader(trainer, cached=cached)
    if loader is None:
        return None

    def both(inputs: Any) -> Tensor:
        features = model.features(inputs)
        return torch.cat([features[:, :width].float(), model.head(features).float()], dim=1)

    total = width + model.num_classes
    found, labels, _ = gather_features(
        trainer, model, Seen({"both": torch.arange(total)}, {"both": total}, {}), loader, both
    )
    return (found[:, :width], found[:, width:], labels) if len(labels) else None


def _readout_solver(trainer: Any, model: Any) -> ReadoutSolver | None:
    if not leaves_its_head(model) or not isinstance(model.method, LayerReadout):  # others have no shrinkage
        return None
    return next((part for part in trainer.callbacks if isinstance(part, ReadoutSolver)), None)


def _warn(trainer: Any, message: str) -> None:
    if trainer.is_global_zero:
        warnings.warn(f"KeepStatistics {message}", stacklevel=2)


def _write_again(trainer: Any, model: Any) -> None:
    """Write the deltas of the weights that the model has, once more, with its statistics."""
    own = {name: value.detach().cpu() for name, value in tuned_state(model).items() if not name.startswith("doubt.")}
    for path in _deltas(trainer):
        kept = {name: value for name, value in read_delta(path).tensors.items() if not name.startswith("doubt.")}
        same = kept.keys() == own.keys()
        if same and all(torch.equal(value, own[name]) for name, value in kept.items()):
            save_delta(model, path)


def _deltas(trainer: Any) -> list[str]:
    """Return the deltas that callbacks have written and that are there."""
    found: dict[str, None] = {}
    for part in trainer.callbacks:
        if isinstance(part, DeltaCheckpoint):
            found |= dict.fromkeys([*part.best_k_models, part.best_model_path, part.last_model_path])
        if isinstance(part, SolveHead) and part.path is not None:
            found[part.path] = None
    return [path for path in map(str, found) if path.endswith(DELTA_SUFFIX) and Path(path).is_file()]
