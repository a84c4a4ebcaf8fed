"""While time is left: ways to tune the network, each judged on folds of the training images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import lightning as L
import torch
from torch import Tensor

from nc_finetune.backbones import Backbone
from nc_finetune.callbacks import SolveHead
from nc_finetune.classifier import DivergedError, ImageClassifier
from nc_finetune.functional import temperature
from nc_finetune.heads import MeanHead
from nc_finetune.selection import CrossValidation, HeldOut
from nc_finetune.selection.cross_validation import FoldError
from nc_finetune.tuning.candidates import Candidate, Costs, proposals
from nc_finetune.tuning.folder import Step
from nc_finetune.tuning.judged import Judged, best_of, right
from nc_finetune.tuning.readouts import FOLDS, Readout
from nc_finetune.tuning.work import MOST_SECONDS, Work

_EPOCHS = 15
_FULL_FT_PASSES = 3 * _EPOCHS  # forward passes that full fine-tuning takes: a backward pass is two of them
_PASSES_AT_THE_END, _SECONDS_AT_THE_END = 3, 3.0  # for the page and the test
_FEWEST = 4  # images a class on average
_CLEARLY = 1.0  # standard errors


class Search:
    """Judges candidates one after the other, and fits the best to all images.

    Args:
        work: What is shared.
        name: Of the network.
        backbone: The pre-trained network.
        readout: Its readout, at whose image size everything is tuned.
    """

    def __init__(self, work: Work, name: str, backbone: Backbone, readout: Readout) -> None:
        self.work = work
        self.backbone = backbone
        self.readout = readout
        self._name = name

    def run(self) -> None:
        """Judge candidates from cheap to dear while time is left; they are added to what was judged."""
        work, readout = self.work, self.readout
        classes = sum(map(bool, work.data.class_counts))
        if len(work.folds) < FOLDS or len(work.labels) < _FEWEST * classes:
            work.tell(
                f"with fewer than {_FEWEST} images a class on average nothing is judged on folds: the readout stays"
            )
            return
        if work.clock.given is None:
            work.clock.budget = min(MOST_SECONDS, _FULL_FT_PASSES * readout.seconds)
        work.data.image_size = readout.image_size
        costs, scores = Costs(self.backbone, work.data, readout.seconds), dict[str, float]()
        for candidate in proposals(self.backbone, readout.layers, _EPOCHS, scores):
            if self._has_time(candidate, costs):
                found = self._judge(candidate, costs)
                if found is not None:
                    scores[candidate.name] = found

    def fit_to_all(self, best: Judged) -> ImageClassifier:
        """Fit a candidate to all training images, and where it is a mean, the readout beside it."""
        assert best.candidate is not None  # noqa: S101 - what calls this has looked
        self.work.data.image_size = best.image_size
        _, model = self._judging.refit(self._builder(best.candidate), best.epochs, self._beside(best))
        if best.scales is not None and isinstance(model.head, MeanHead):
            model.head.scales.copy_(torch.tensor(best.scales))
        found: ImageClassifier = model.eval()
        return found

    def _beside(self, best: Judged) -> list[L.Callback]:
        if best.scales is None:
            return []
        return [SolveHead(self.readout.layers, take="mean", shrinkage=self.readout.shrinkage, frozen=True)]

    @cached_property
    def _judging(self) -> CrossValidation:
        work = self.work
        return CrossValidation(
            work.data,
            FOLDS,
            epochs=_EPOCHS,
            seed=work.seed,
            progress=work.folder.path / "steps",
            identity=f"{self._name} {self.readout.image_size}",
            groups=work.groups,
        )

    def _has_time(self, candidate: Candidate, costs: Costs) -> bool:
        """Tell whether a candidate can be judged, and fitted, in the time that is left; what was decided stays so."""
        work = self.work
        name = f"{candidate.name} {self.readout.image_size}"
        if work.folder.read(f"begun {name}") is not None:
            return True
        known = work.folder.read(f"left out {name}")
        if known is not None and known.facts["budget"] >= work.clock.budget:
            work.left_out.append(candidate.name)
            return False
        need = costs.fits(candidate, FOLDS)  # FOLDS - 1 in all on folds, and one to all images
        reserve = _PASSES_AT_THE_END * self.readout.seconds + _SECONDS_AT_THE_END
        if need + reserve > work.clock.left:
            work.left_out.append(candidate.name)
            work.folder.write(f"left out {name}", Step({"budget": work.clock.budget}))
            return False
        work.folder.write(f"begun {name}", Step())
        return True

    def _judge(self, candidate: Candidate, costs: Costs) -> float | None:
        """Judge a candidate on the first fold, and where it is not clearly behind there, on all; return its score."""
        work, judging = self.work, self._judging
        before = work.clock.spent
        try:
            part = judging.judge(candidate.name, self._builder(candidate), folds=1)
            costs.learn(candidate, 1 - 1 / FOLDS, part.seconds)
            behind = self._behind(part)
            if behind is None:
                part = judging.judge(candidate.name, self._builder(candidate))
        except (DivergedError, FoldError) as error:
            work.tell(f"{candidate.name}: {error}")
            return None
        work.clock.count(part.seconds - (work.clock.spent - before))
        said = f"{candidate.name}: {100 * part.score:.1f} % of {len(part.items)} held-out images"
        if behind is not None:
            work.tell(f"{said}, {100 * behind:.1f} points behind the best there: given up")
            best = best_of(work.judged, work.labels).logits
            return right(best, work.labels)[best.isfinite().all(1)].double().mean().item() - behind
        logits = torch.full((len(work.labels), work.data.num_classes), torch.nan)
        logits[part.items] = part.chosen_logits
        alone = Judged(
            candidate.name,
            self.readout.image_size,
            logits,
            part.seconds,
            candidate=candidate,
            epochs=part.epoch,
            backbone=self._name,
        )
        mean, scales = self._mean_with_readout(logits)
        together = replace(alone, name=f"{candidate.name}, mean with the readout", logits=mean, scales=scales)
        work.judged += [alone, together]
        known = mean.isfinite().all(1)
        score = right(mean, work.labels)[known].double().mean().item()
        work.tell(f"{said}, with the readout {100 * score:.1f} %, after {part.epoch} epochs; {part.seconds:.0f} s")
        return max(part.score, score)

    def _mean_with_readout(self, logits: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """Return the mean of the readout's and other logits, each over its temperature on the folds, and the scales."""
        labels, folds = self.work.labels, self.readout.fold_logits
        scales = tuple(0.5 / temperature(found, labels).item() for found in (folds, logits))
        return scales[0] * folds + scales[1] * logits, (scales[0], scales[1])

    def _builder(self, candidate: Candidate) -> Callable[[], ImageClassifier]:
        return lambda: candidate.build(self.backbone, self.work.data.num_classes)

    def _behind(self, part: HeldOut) -> float | None:
        """Return by how much a candidate is behind the best on the same images, where that is clear."""
        labels = self.work.labels[part.items]
        logits = torch.full((len(self.work.labels), self.work.data.num_classes), torch.nan)
        logits[part.items] = part.chosen_logits
        alone, together = (right(found[part.items], labels) for found in (logits, self._mean_with_readout(logits)[0]))
        own = max(alone.double(), together.double(), key=lambda found: found.mean().item())
        best = max(
            (right(one.logits[part.items], labels).double() for one in self.work.judged),
            key=lambda found: found.mean().item(),
        )
        lost = best - own
        clear = lost.mean() > _CLEARLY * lost.std() / len(lost) ** 0.5
        return lost.mean().item() if clear else None
