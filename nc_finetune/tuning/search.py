"""While time is left: ways to tune the network, each judged on folds of the training images."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import cached_property, partial

import lightning as L
import torch
from torch import Tensor

from nc_finetune.backbones import Backbone
from nc_finetune.callbacks import KeepStatistics, SolveHead
from nc_finetune.classifier import DivergedError, ImageClassifier
from nc_finetune.data import RandomCropFlip
from nc_finetune.functional import temperature
from nc_finetune.heads import MeanHead
from nc_finetune.selection import CrossValidation, HeldOut
from nc_finetune.selection.cross_validation import FoldError
from nc_finetune.tuning.candidates import Candidate, proposals, said_of_rate
from nc_finetune.tuning.costs import Company, Costs, OutOfTimeError
from nc_finetune.tuning.folder import Step
from nc_finetune.tuning.judged import Judged, best_of, right
from nc_finetune.tuning.readouts import FOLDS, Readout
from nc_finetune.tuning.work import MEASURED, MOST_SECONDS, Work

_EPOCHS = 15
_SECONDS_AT_THE_END = 3.0  # for the page
_LEAST_CROP = (0.5, 1.0)  # of an image, in shares of its area
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
        self._company = Company()
        self._tried: list[Candidate] = []
        self._charged = 0.0

    def run(self) -> None:
        """Judge candidates from cheap to dear while time is left; they are added to what was judged."""
        work, readout = self.work, self.readout
        classes = sum(map(bool, work.data.class_counts))
        if len(work.folds) < FOLDS or len(work.labels) < _FEWEST * classes:
            work.tell(
                f"with fewer than {_FEWEST} images a class on average nothing is judged on folds: the readout stays"
            )
            return
        work.data.image_size = readout.image_size
        costs, scores = Costs(self.backbone, work.data, readout.seconds), dict[str, float]()
        if work.clock.given is None:
            work.clock.budget = self._budget(costs)
        with nullcontext() if work.executor is None else work.executor.cluster():
            for together in proposals(self.backbone, readout.layers, _EPOCHS, scores, readout.image_size):
                self._judge_ahead(together, costs)
                for candidate in together:
                    found = self._judge(candidate, costs) if self._has_time(candidate, costs) else None
                    if found is not None:
                        scores[candidate.name] = found
                        self._tried.append(candidate)

    def _budget(self, costs: Costs) -> float:
        """Return what one full fine-tuning takes, as it was measured the first time."""
        name = f"budget {self._name} {self.readout.image_size}"
        kept = self.work.folder.read(name)
        if kept is None:
            kept = Step({"seconds": min(MOST_SECONDS, _EPOCHS * (costs.epoch + costs.reading))})
            self.work.folder.write(name, kept)
        return float(kept.facts["seconds"])

    def said_of_rate(self, best: Judged) -> str:
        """Return a word on where the learning rate of the best lies among those tried; empty where it is inside."""
        return "" if best.candidate is None else said_of_rate(best.candidate, self._tried)

    def fit_to_all(self, best: Judged) -> ImageClassifier:
        """Fit a candidate to all training images, and where it is a mean, the readout beside it."""
        assert best.candidate is not None  # noqa: S101 - what calls this has looked
        self.work.data.image_size = best.image_size
        self._company.until = math.inf
        with self._augmented(best.candidate), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="KeepStatistics found no")  # the folds know, or it is told
            _, model = self._judging.refit(self._builder(best.candidate), best.epochs, self._beside(best))
        if best.scales is not None and isinstance(model.head, MeanHead):
            model.head.scales.copy_(torch.tensor(best.scales))
        found: ImageClassifier = model.eval()
        self._take_doubts(found, best)
        return found

    def _take_doubts(self, model: ImageClassifier, best: Judged) -> None:
        """Take temperature and sets from what models of the other folds have said of each image."""
        if model.doubt is None:
            self.work.tell("note: features of the tuned network have collapsed: it does not know strange images")
            return
        model.doubt.take_scores(best.logits, self.work.labels)
        if model.doubt.is_too_sure:
            self.work.tell(
                "note: how strange an image is is measured by features that were tuned on the training images: new ones"
                " look stranger than they are"
            )

    def _beside(self, best: Judged) -> list[L.Callback]:
        if best.scales is None:
            return [KeepStatistics()]
        solver = SolveHead(self.readout.layers, take="mean", shrinkage=self.readout.shrinkage, frozen=True)
        return [solver, KeepStatistics()]

    @cached_property
    def _judging(self) -> CrossValidation:
        work = self.work
        return CrossValidation(
            work.data,
            FOLDS,
            epochs=_EPOCHS,
            seed=work.seed,
            callbacks=self._company,
            progress=work.folder.path / "steps",
            identity=f"{self._name} {self.readout.image_size}",
            groups=work.groups,
        )

    def _has_time(self, candidate: Candidate, costs: Costs, before: float = 0.0) -> bool:
        """Tell whether a candidate can be judged, and fitted, in the time that is left; what was decided stays so.

        Args:
            candidate: The candidate.
            costs: What it takes.
            before: Seconds that others take first.
        """
        work = self.work
        name = f"{candidate.name} {self.readout.image_size}"
        known = work.folder.read(f"left out {name}")
        if known is not None and known.facts["budget"] >= work.clock.budget:
            self._leave_out(candidate)
            return False
        if work.folder.read(f"begun {name}") is not None:
            return True
        need = before + self._need(candidate, costs)
        if need + self._afterwards(candidate, costs) > work.clock.left:
            self._leave_out(candidate)
            return False
        work.folder.write(f"begun {name}", Step())
        return True

    def _need(self, candidate: Candidate, costs: Costs) -> float:
        """Return the seconds of judging a candidate: a fold, and then the others, each FOLDS - 1 of FOLDS parts."""
        rounds = 1 + -(-(FOLDS - 1) // self._workers)
        return costs.fits(candidate, rounds * (1 - 1 / FOLDS))

    def _check_time(self, candidate: Candidate, costs: Costs) -> None:
        """Go on with a candidate only if its other folds can be done by what the first has taken."""
        others = costs.fits(candidate, (FOLDS - 1) * (1 - 1 / FOLDS))
        if self.work.executor is None and time.time() + others > self._company.until:
            raise OutOfTimeError("its other folds take longer")

    def _charge(self) -> None:
        """Count what earlier processes have spent on folds that were found; as many at a time as there are workers."""
        spent = self._judging.seconds_before
        self.work.clock.count((spent - self._charged) / self._workers)
        self._charged = spent

    @property
    def _workers(self) -> int:
        return 1 if self.work.executor is None else min(FOLDS, self.work.executor.workers)

    def _last_moment(self, candidate: Candidate, costs: Costs) -> float:
        """Return until when a candidate may be judged, in seconds of :func:`time.time`."""
        return time.time() + self.work.clock.left - self._afterwards(candidate, costs)

    def _leave_out(self, candidate: Candidate) -> None:
        work = self.work
        if candidate.name not in work.left_out:
            work.left_out.append(candidate.name)
        work.folder.write(f"left out {candidate.name} {self.readout.image_size}", Step({"budget": work.clock.budget}))

    def _afterwards(self, candidate: Candidate, costs: Costs) -> float:
        """Return the seconds to keep for fitting the candidate, or the best so far, to all images, and for the end."""
        work, every = self.work, len(self.work.labels)
        best = best_of(work.judged, work.labels).candidate
        fits = [costs.fits(one, 1.0) for one in (candidate, best) if one is not None]
        others = len(work.tested.images if work.tested else ()) + len(work.data.files or ())
        passes = 1 + 3 * min(1.0, MEASURED / every) + others / every
        return max(fits) + passes * self.readout.seconds + _SECONDS_AT_THE_END

    def _judge_ahead(self, together: Sequence[Candidate], costs: Costs) -> None:
        """Let other processes judge candidates, first on one fold, then on all those that are not behind there."""
        work, judging = self.work, self._judging
        if work.executor is None:
            return
        begun: list[Candidate] = []
        for candidate in together:
            share = sum(self._need(one, costs) for one in begun) * FOLDS / max(FOLDS, work.executor.workers)
            if self._has_time(candidate, costs, share):
                begun.append(candidate)
        first, others = [0], list(range(1, len(judging.folds)))
        for folds in (first, others):
            for augmented in {candidate.augmented for candidate in begun}:
                wanted = {one.name: one for one in begun if one.augmented is augmented}
                builders = {name: self._builder(one) for name, one in wanted.items()}
                ends = {name: Company(self._last_moment(one, costs)) for name, one in wanted.items()}
                with self._augmented(next(iter(wanted.values()))):
                    judging.judge_ahead(builders, folds, work.executor.each, ends)
            begun = [one for one in begun if self._goes_on(one)]

    def _goes_on(self, candidate: Candidate) -> bool:
        try:
            part = self._judging.judge(candidate.name, self._builder(candidate), folds=1)
        except (DivergedError, FoldError):  # told where it is judged
            return False
        return self._behind(part) is None

    @contextmanager
    def _augmented(self, candidate: Candidate) -> Iterator[None]:
        """Show flipped and cropped images while a candidate is trained that wants them."""
        data = self.work.data
        data.batch_transform = RandomCropFlip(scale=_LEAST_CROP) if candidate.augmented else None
        try:
            yield
        finally:
            data.batch_transform = None

    def _judge(self, candidate: Candidate, costs: Costs) -> float | None:
        """Judge a candidate on the first fold, and where it is not clearly behind there, on all; return its score."""
        work, judging = self.work, self._judging
        earlier = judging.seconds_before
        self._company.until = self._last_moment(candidate, costs)
        try:
            with self._augmented(candidate):
                part = judging.judge(candidate.name, self._builder(candidate), folds=1)
                costs.learn(candidate, 1 - 1 / FOLDS, part.seconds)
                behind = self._behind(part)
                if behind is None:
                    if judging.seconds_before == earlier:  # nothing was there already
                        self._check_time(candidate, costs)
                    part = judging.judge(candidate.name, self._builder(candidate))
        except OutOfTimeError:
            work.tell(f"{candidate.name}: takes longer than there is time, and was stopped")
            self._leave_out(candidate)
            return None
        except (DivergedError, FoldError) as error:
            work.tell(f"{candidate.name}: {error}")
            return None
        finally:
            self._charge()
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
        backbone = self.backbone if self.work.executor is None else self._portable
        return partial(candidate.build, backbone, self.work.data.num_classes)

    @cached_property
    def _portable(self) -> Backbone:
        """The network where every process can take it over."""
        return deepcopy(self.backbone).cpu()

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
