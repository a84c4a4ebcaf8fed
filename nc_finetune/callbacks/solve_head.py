"""Solve a head on the network that has been tuned, as a Lightning callback."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from nc_finetune.backbones import LayerChoice, weights_hash
from nc_finetune.callbacks._discriminants import Seen, gather_features, solve_gathered
from nc_finetune.callbacks._solving import training_loader, validation_loader
from nc_finetune.callbacks.average_epochs import catch_up
from nc_finetune.callbacks.best_epoch import BestEpoch
from nc_finetune.errors import check_name
from nc_finetune.files.class_config import describe
from nc_finetune.files.delta import save_delta
from nc_finetune.files.delta_io import DELTA_SUFFIX
from nc_finetune.functional.discriminant import Priors, checked_shrinkages
from nc_finetune.functional.readout import SolvedHead, clearly_best
from nc_finetune.functional.temperature import temperature
from nc_finetune.heads import DiscriminantHead, MeanHead
from nc_finetune.methods import AUTO, FinetuningMethod, LayerReadout
from nc_finetune.passes.evaluation import random_state_kept, refuse_sharded

Head = Literal["trained", "solved", "mean"]
Take = Literal["auto", "solved", "mean"]


@dataclass(frozen=True)
class HeadScore:
    """How a head does on the validation images.

    Attributes:
        accuracy: A share.
        log_likelihood: Mean, at the best temperature.
        temperature: That.
    """

    accuracy: float
    log_likelihood: float
    temperature: float


class SolveHead(L.Callback):
    """At the end of any fit solve a head on the tuned network, and take it, or its mean with the trained one.

    One pass over the training images, without augmentation where the data can do without, gives class means and
    within-class covariance of what the head sees, or of several layers, and these the shrunk discriminant with
    shrinkage and temperature of the best leave-one-out likelihood, as for
    :class:`~nc_finetune.methods.LayerReadout`. On the validation images (of several loaders, those of the first) the
    trained head, the solved one and the mean of their log-probabilities then each get the temperature that suits them,
    and ``take="auto"`` is the mean, unless one of the two is clearly likelier: by more than one standard error of the
    difference, image by image. A few hundred images tell likelihoods apart long before they do accuracies. The network
    has seen the training images, so that leaving one of them out says nothing of images that it has not: without
    validation images ``"auto"`` is the mean, unjudged, in which the logits of the trained head are scaled to differ
    within an image as much as those of the solved one do.

    From then on the model has this head: it is validated, tested, saved, exported and predicts by it. What was saved
    during the fit has the trained one, which comes back where such a file is loaded and where a further fit begins.
    Where nothing can be solved, since features are not finite or have collapsed to a point, the trained head stays,
    with a warning. Weights that a callback averages are the average by then, and those of :class:`BestEpoch` the best.
    Logged are, as ``solve_head/...``, accuracy and log-likelihood of each head, shrinkage and leave-one-out accuracy.

    Args:
        layers: From which layers: as for :class:`~nc_finetune.methods.LayerReadout`, ``"later_half"``, ``"all"``, a
            list, ...; blocks before the tuned ones are as they were pre-trained, so that frozen and tuned layers stand
            side by side, and what the head sees stands in place of the penultimate feature. ``None`` is that alone.
        take: ``"auto"`` chooses on the validation images; ``"solved"`` and ``"mean"`` are taken whatever these say.
        shrinkage: Of the covariance, in ``(0, 1]``, or several to choose from; ``None`` chooses from 1e-4 to 1.
        priors: Of the classes: ``"equal"``, or ``"counts"`` of the training images.
        path: A ``.safetensors`` file, to which a delta of the model as it is then is written; ``None`` leaves that to
            :func:`~nc_finetune.save_delta` after the fit.

    Raises:
        ValueError: If an argument is another word or out of range; at the start of a fit, if images have several
            labels, the method trains nothing, the strategy shards the network, layers are named under a method that
            looks at several, the network that is to be kept has been tuned already, or there are two of these
            callbacks.
        TypeError: At the start of a fit, if the module is no :class:`~nc_finetune.ImageClassifier`.

    Attributes:
        taken: ``"trained"``, ``"solved"`` or ``"mean"``; ``None`` before.
        scores: Of each of the three on the validation images; empty where there are none.
        solved: The solved head, and what leaving one out says of it; ``None`` before, or where there is none.
        samples: How many validation images there were.

    Source:
        Fisher 1936, 10.1111/j.1469-1809.1936.tb02137.x; a head that is fitted after the features: Kang et al. 2020,
        Decoupling representation and classifier, arXiv:1910.09217.

    Example:
        >>> SolveHead("later_half").taken is None
        True
    """

    def __init__(
        self,
        layers: LayerChoice | None = None,
        take: Take = "auto",
        *,
        shrinkage: float | Sequence[float] | None = None,
        frozen: bool = False,
        priors: Priors = "equal",
        path: str | None = None,
    ) -> None:
        check_name("head to take", take, get_args(Take))
        check_name("priors", priors, get_args(Priors))
        checked_shrinkages(shrinkage)
        if layers is not None and layers == AUTO:
            raise ValueError("layers='auto' is chosen for a frozen network; name them, such as 'later_half'")
        if frozen and layers is None:
            raise ValueError("frozen=True is of layers of the network as it was; name them, such as 'later_half'")
        if path is not None and not path.endswith(DELTA_SUFFIX):
            raise ValueError(f"path must end in {DELTA_SUFFIX}, as of a delta, got {path!r}")
        self.layers = layers
        self.take: Take = take
        self.shrinkage = shrinkage
        self.priors: Priors = priors
        self.path = path
        self.frozen = frozen
        self._kept: tuple[Any, Any] = (None, None)  # a model, and its network before it was tuned
        self._forget()

    def _forget(self) -> None:
        self.taken: Head | None = None
        self.scores: dict[str, HeadScore] = {}
        self.solved: SolvedHead | None = None
        self.samples = 0

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse what cannot be solved."""
        if stage != "fit":
            return
        name = type(self).__name__
        refuse_sharded(trainer, name)
        if not hasattr(pl_module, "taken_head"):
            raise TypeError(f"{name} needs an ImageClassifier, got {type(pl_module).__name__}")
        if sum(isinstance(part, SolveHead) for part in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise ValueError(f"there are several {name}, and a model takes one head; leave all but one out")
        if pl_module.multilabel:
            raise ValueError(
                f"{name} solves the discriminant of classes of which each image has one, and the loss takes several"
                " labels an image; leave it out"
            )
        if not pl_module.method.trains:
            raise ValueError(f"{name} comes after training, and {pl_module.method.label} trains nothing; leave it out")
        if self.layers is not None and not self.frozen and isinstance(pl_module.method, LayerReadout):
            raise ValueError(
                f"the method of the model looks at several layers already; leave layers={self.layers!r} out of {name}"
            )
        self._begun = False
        if self.frozen and self._kept[0] is not pl_module:
            self._keep(pl_module)

    def _keep(self, model: Any) -> None:
        """Copy the network before it is tuned: a checkpoint that is resumed from is loaded later."""
        known = model.backbone.base_hash
        if known is not None and known != weights_hash(model.backbone.model):
            raise ValueError(
                f"{type(self).__name__}(frozen=True) keeps the network as it came, and this one has been tuned since;"
                " build the model anew, or leave frozen out"
            )
        self._kept = model, copy.deepcopy(model.backbone).requires_grad_(False).eval()

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Forget what was taken after another fit, and look whether there are such layers."""
        self._forget()
        self._begun = True
        self._method(pl_module).num_features(pl_module.backbone)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Solve, compare, take, say what, and write it; on the best epoch, where that is put back."""
        for part in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(part, BestEpoch):
                part.on_train_end(trainer, pl_module)
        self._take(trainer, pl_module)
        if self.path is not None and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            save_delta(pl_module, self.path)

    def _take(self, trainer: L.Trainer, pl_module: Any) -> None:
        pair = _Pair(pl_module, self._method(pl_module), self._method(pl_module, given=self.layers is not None))
        self.solved = solved = self._solve(trainer, pl_module, pair)
        if solved is None:
            self.taken = "trained"
            return
        with random_state_kept():
            pair.join(solved, partial(DiscriminantHead, shrinkage=self.shrinkage, priors=self.priors))
        self.scores, best = trainer.strategy.broadcast(self._judge(trainer, pl_module, pair))
        self.taken = taken = best if self.take == "auto" else self.take
        pair.take(taken, self.scores)
        if pl_module.taken_head.is_used:
            catch_up(pl_module)  # checkpoints hold averages
        rank_zero_info(self._in_words(taken, solved))
        metrics = self._metrics(solved)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Leave a model as it was that had been trained to the end."""
        if not self._begun and trainer.ckpt_path is None:
            pl_module.taken_head.use_again()

    def _method(self, model: Any, given: bool = False) -> FinetuningMethod:
        """Return what gives the features: the method of the model, or layers beside it."""
        method: FinetuningMethod = model.method
        if self.layers is None:
            return method
        readout = LayerReadout(
            self.layers, shrinkage=self.shrinkage, priors=self.priors, method=method, given=given, frozen=self.frozen
        )
        if self.frozen:
            readout.network = self._kept[1].to(next(model.backbone.parameters()))
        return readout

    def _solve(self, trainer: L.Trainer, model: Any, pair: _Pair) -> SolvedHead | None:
        """Solve the head; ``None`` where that cannot be."""
        loader = training_loader(trainer, model, type(self).__name__, cached=self.layers is None)
        seen = Seen.by(pair.method, model.backbone, self)
        gathered = gather_features(trainer, model, seen, loader, pair.features)
        pair.spread = trainer.strategy.reduce(pair.spread, reduce_op="sum")
        try:
            _, solved = solve_gathered(gathered, seen, model.num_classes)
        except ValueError as error:  # the same in all processes, which have gathered the same
            if trainer.is_global_zero:
                warnings.warn(
                    f"{type(self).__name__} has nothing to solve, and the trained head stays: {error}", stacklevel=2
                )
            return None
        found: SolvedHead = trainer.strategy.broadcast(solved)
        return found

    def _judge(self, trainer: L.Trainer, model: Any, pair: _Pair) -> tuple[dict[str, HeadScore], Head]:
        """Score the heads on the validation images, none where there are none, and return the best with them."""
        loader = validation_loader(trainer, cached=self.layers is None)
        if loader is None:
            return {}, "mean"
        width = 2 * model.num_classes
        both = Seen({"logits": torch.arange(width)}, {"logits": width}, {})
        logits, labels, _ = gather_features(trainer, model, both, loader, pair.logits)
        self.samples = len(labels)
        if not self.samples:
            return {}, "mean"
        solved, trained = logits.double().chunk(2, dim=1)
        mean = (solved / temperature(solved, labels) + trained / temperature(trained, labels)) / 2
        scores, losses = {}, {}
        for name, found in {"trained": trained, "solved": solved, "mean": mean}.items():
            suits = temperature(found, labels)
            losses[name] = F.cross_entropy(found / suits, labels, reduction="none")
            accuracy = (found.argmax(1) == labels).double().mean().item()
            scores[name] = HeadScore(accuracy, -losses[name].mean().item(), suits.item())
        best: Any = clearly_best(losses, "mean")
        return scores, best

    def _metrics(self, solved: SolvedHead) -> dict[str, float]:
        values = {
            "leave_one_out_accuracy": solved.accuracy,
            "shrinkage": solved.shrinkage,
            **{f"{name}_accuracy": score.accuracy for name, score in self.scores.items()},
            **{f"{name}_log_likelihood": score.log_likelihood for name, score in self.scores.items()},
        }
        return {f"solve_head/{name}": value for name, value in values.items()}

    def _in_words(self, taken: Head, solved: SolvedHead) -> str:
        words = {"trained": "the trained head stays", "solved": "the solved head is taken", "mean": "the mean is taken"}
        told = f"{type(self).__name__}: {words[taken]}"
        if self.scores:
            shown = ", ".join(
                f"{name} {100 * score.accuracy:.1f} % ({score.log_likelihood:.3f})"
                for name, score in self.scores.items()
            )
            gain = 100 * (self.scores[taken].accuracy - self.scores["trained"].accuracy)
            told += f", {gain:+.1f} points on {self.samples} validation images: {shown} by accuracy (log-likelihood)"
        else:
            told += ", unjudged, since there are no validation images"
        return f"{told}; shrinkage {solved.shrinkage:g}"


class _Pair:
    """The trained head beside the solved one, each with what it sees.

    Args:
        model: An :class:`~nc_finetune.ImageClassifier`.
        method: Gives what the solved head sees.
        both: Gives behind that what the trained head sees; the method itself where they see the same.
    """

    def __init__(self, model: Any, method: FinetuningMethod, both: FinetuningMethod) -> None:
        self.model = model
        self.method = method
        self.both = both
        widths = method.num_features(model.backbone), model.method.num_features(model.backbone)
        self.widths = None if both is method else widths
        self.spread = torch.zeros(2, dtype=torch.float64, device=model.device)  # sum over images, and their number

    def features(self, inputs: Any) -> Tensor:
        """Return what the solved head sees, and note how far the logits of the trained one lie apart."""
        found = self._all(inputs)
        seen, given = (found, found) if self.widths is None else torch.split(found, [*self.widths], dim=1)
        apart = _apart(self.model.head(given))
        self.spread += torch.stack([apart.sum(), apart.new_tensor(len(apart))])
        return seen

    def join(self, found: SolvedHead, build: partial[DiscriminantHead]) -> None:
        """Build the solved head, and the mean with the trained one, in which both lie equally far apart."""
        trained, (classes, width) = self.model.head, found.weight.shape
        values = (*trained.state_dict().values(), *self.model.backbone.parameters())
        like = next(value for value in values if value.is_floating_point())
        self.solved = build(width, classes).to(like)
        self.solved.take_(found.weight, found.bias)
        self.mean = MeanHead(
            width if self.widths is None else sum(self.widths),
            classes,
            first=lambda *_: self.solved,
            second=lambda *_: copy.deepcopy(trained),
            widths=self.widths,
        ).to(like)
        known = found.weight.any(1)  # of other classes there was no image
        apart = _apart(found.logits[found.logits.isfinite().all(1)][:, known]).mean() if known.any() else torch.nan
        ratio = float(apart * self.spread[1] / self.spread[0])
        self.mean.scales[1] *= ratio if 0 < ratio < math.inf else 1.0
        self._build = build

    def logits(self, inputs: Any) -> Tensor:
        """Return the logits of the solved head and of the trained one, side by side."""
        return torch.cat(self.mean.parts(self._all(inputs)), dim=1)

    def take(self, name: Head, scores: Mapping[str, HeadScore]) -> None:
        """Let the model predict by one of the heads, at its temperature on the validation images."""
        if name == "trained":
            return
        sharp = 1 / scores[name].temperature if scores else 1.0
        config = describe(self._build)
        if name == "solved":
            self.solved.take_(sharp * self.solved.weight, sharp * self.solved.bias)
            self.model.taken_head.take(self.method, self.solved, config)
            return
        if scores:
            each = [sharp / (2 * scores[part].temperature) for part in ("solved", "trained")]
            self.mean.scales.copy_(torch.tensor(each))
        second = self.model.head_config
        config = describe(partial(MeanHead, widths=self.widths))
        config["init_args"] |= {"first": describe(self._build), "second": second}
        self.model.taken_head.take(self.both, self.mean, None if second is None else config)

    def _all(self, inputs: Any) -> Tensor:
        if self.widths is None:
            found: Tensor = self.model.features(inputs)
            return found
        return self.both.features(self.model.backbone, inputs)


def _apart(logits: Tensor) -> Tensor:
    """Return how far the logits of each sample lie apart, shape ``(N,)``."""
    logits = logits.double()
    return logits.amax(1) - logits.amin(1)
