"""A short measured trial of fine-tuning one block, on a backbone that many trials share."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nc_finetune.backbones import Backbone
from nc_finetune.classifier import ImageClassifier
from nc_finetune.files.delta import tuned_state
from nc_finetune.functional import class_statistics, nc1, nearest_class_center
from nc_finetune.heads import CosineHead
from nc_finetune.methods import FinetuningMethod, parameter_groups
from nc_finetune.selection._trials.halving import Measurement
from nc_finetune.selection._trials.trial_samples import FoldedSamples, Samples, TrialSamples, behind_prefix


class BlockTrial:
    """Train the block and the head of a method for some steps, measure, and leave the backbone as it was.

    What comes before the block runs once over all samples, where the network can be cut there. The head of a trial is
    a random cosine head, whatever head is trained later: its gradients do not depend on the scale of the features,
    which makes classes collapse in few steps, while behind a head that fits already the block would hardly move. It is
    not judged itself, only the features are. Each round is a small fine-tuning of its own, down to a rate of zero: what
    is measured in the middle of one is mostly the noise of its last steps.

    Args:
        backbone: Shared by all trials; its weights are the pre-trained ones before and after.
        samples: What is trained on and judged by, shared by all trials.
        method: What is tuned.
        learning_rate: Rate of the tuned block.
        head_learning_rate: Rate of the head.
        seed: Of the head and of the order of the batches.
        before: A trial of an earlier block, from whose frozen prefix this one's goes on.
    """

    def __init__(
        self,
        backbone: Backbone,
        samples: TrialSamples,
        method: FinetuningMethod,
        *,
        learning_rate: float,
        head_learning_rate: float = 1e-3,
        seed: int = 0,
        before: BlockTrial | None = None,
    ) -> None:
        self.backbone = backbone
        self.samples = samples
        self.device = next(backbone.parameters()).device
        self.model = _model(backbone, samples.num_classes, method, seed)
        self.train, self.val = samples.train, samples.val
        if samples.train.split is None:
            parts = [samples.train, samples.val]
            earlier = None if before is None else [before.train, before.val]
            self.train, self.val = behind_prefix(self.model, parts, samples.batch_size, earlier)
        self._generator = torch.Generator().manual_seed(seed)
        groups = parameter_groups(
            backbone,
            method,
            [self.model.head],
            learning_rate=learning_rate,
            head_learning_rate=head_learning_rate,
            rest_learning_rate=None,
        )
        self.optimizer = torch.optim.AdamW(groups)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._kept: dict[str, Tensor] = {}
        self._batches = self._train_batches()

    def advance(self, steps: int) -> Measurement:
        """Train for some steps, with rates that rise and then fall to zero, and measure on validation images."""
        with self._weights_of_this_trial():
            self.model.train()
            for step in range(steps):
                self._set_rates(_cycle(step, steps))
                self._step(next(self._batches))
            return self._measure()

    def _set_rates(self, factor: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = factor * rate

    @torch.no_grad()
    def _features(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Return what the head sees, in eval mode."""
        self.model.eval()
        features = []
        for batch in samples.batches(self.samples.batch_size):
            with batch.to(self.device).images() as images:
                features.append(self.model.features(images).float())
        return torch.cat(features), samples.labels.to(self.device)

    def _step(self, batch: Samples) -> None:
        batch = batch.to(self.device)
        with batch.images() as images:
            loss = self.model.loss(self.model(images), batch.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _measure(self) -> Measurement:
        """Judge the features by the nearest class centre: in so few steps the head cannot follow the block."""
        features, labels = self._features(self.train)
        means = class_statistics(features, labels, self.samples.num_classes).means
        features, labels = self._features(self.val)
        accuracy = (nearest_class_center(features, means.float()) == labels).double().mean().item()
        present, numbered = torch.unique(labels, return_inverse=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="NC1 is undefined")  # the accuracy says so, too
            spread = nc1(features, numbered).item() if len(present) > 1 else math.nan
        return Measurement(accuracy, spread, len(labels))

    def _train_batches(self) -> Iterator[Samples]:
        while True:
            order = torch.randperm(len(self.train), generator=self._generator)
            yield from (self.train.rows(rows) for rows in torch.split(order, self.samples.batch_size))

    @contextmanager
    def _weights_of_this_trial(self) -> Iterator[None]:
        """Put what this trial has tuned into the shared backbone, and the pre-trained weights back afterwards."""
        self.model.method.freeze(self.backbone)
        names = [name for name in tuned_state(self.model) if name.startswith("backbone.")]
        before = {name: value.clone() for name, value in self._shared(names).items()}
        self._load(self._kept)
        try:
            yield
        finally:
            self._kept = {name: value.clone() for name, value in self._shared(names).items()}
            self._load(before)

    def _shared(self, names: list[str]) -> dict[str, Tensor]:
        state = tuned_state(self.model)
        return {name: state[name].detach() for name in names}

    def _load(self, values: dict[str, Tensor]) -> None:
        state = tuned_state(self.model)
        with torch.no_grad():
            for name, value in values.items():
                state[name].copy_(value)


class FoldedTrial:
    """Trials of one block on several folds of the training images, which count as one.

    What comes before the block runs once over the images of all folds.

    Args:
        backbone: Shared by all trials.
        samples: Of all folds.
        make_method: Builds what is tuned, another one for each fold.
        learning_rate: Rate of the tuned block.
        head_learning_rate: Rate of the head.
        seed: Of the heads and of the order of the batches.
        before: A trial of an earlier block, from whose frozen prefix this one's goes on.
    """

    def __init__(
        self,
        backbone: Backbone,
        samples: FoldedSamples,
        make_method: Callable[[], FinetuningMethod],
        *,
        learning_rate: float,
        head_learning_rate: float = 1e-3,
        seed: int = 0,
        before: FoldedTrial | None = None,
    ) -> None:
        model = _model(backbone, samples.num_classes, make_method(), seed)
        earlier = None if before is None else [before.whole]
        self.whole: Samples = behind_prefix(model, [samples.whole], samples.batch_size, earlier)[0]
        self.trials = [
            BlockTrial(
                backbone,
                part,
                make_method(),
                learning_rate=learning_rate,
                head_learning_rate=head_learning_rate,
                seed=seed,
            )
            for part in samples.divided(self.whole)
        ]

    def advance(self, steps: int) -> Measurement:
        """Train on every fold for some steps, and take the mean by image of what is measured."""
        found = [trial.advance(steps) for trial in self.trials]
        images = sum(part.images for part in found)
        known = [part for part in found if math.isfinite(part.nc1)]
        accuracy = sum(part.accuracy * part.images for part in found) / images
        spread = (
            sum(part.nc1 * part.images for part in known) / sum(part.images for part in known) if known else math.nan
        )
        return Measurement(accuracy, spread, images)


def _model(backbone: Backbone, num_classes: int, method: FinetuningMethod, seed: int) -> ImageClassifier:
    """Build what is tried, with the same head for every block."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ImageClassifier(backbone, num_classes, method=method, head=CosineHead)
    model.to(next(backbone.parameters()).device)
    method.start_epoch(sys.maxsize)  # past any phase in which the block is still frozen
    return model


def _cycle(step: int, steps: int) -> float:
    """Rise over the first quarter, then fall along a cosine."""
    warm = max(1, steps // 4)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
