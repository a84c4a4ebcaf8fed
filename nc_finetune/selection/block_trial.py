"""A short measured trial of fine-tuning one block, on a backbone that many trials share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nc_finetune.backbones import Backbone
from nc_finetune.classifier import ImageClassifier
from nc_finetune.data import ImageData
from nc_finetune.delta_file import tuned_state
from nc_finetune.functional import nc1
from nc_finetune.methods import FinetuningMethod
from nc_finetune.selection.features import fit_probe, method_features, subset_batches
from nc_finetune.selection.halving import Measurement

_FEWEST_VAL_IMAGES = 200
_PROBE_BATCHES = 20
# Strong: a head that fits the training images perfectly has no gradient left for the block.
_FIRST_WEIGHT_DECAY = 1.0


class BlockTrial:
    """Train the block and the head of a method for some steps, measure, and leave the backbone as it was.

    The head starts as a linear probe of the method's own features: from a random one, steps this few would compare
    little but the heads. Each round is a small fine-tuning of its own, down to a rate of zero: what is measured in the
    middle of one is mostly the noise of its last steps.

    Args:
        backbone: Shared by all trials; its weights are the pre-trained ones before and after.
        data: Train and validation split; the test split is not touched.
        method: What is tuned.
        head: Builds the head; where it is a plain linear one, it starts as a probe.
        learning_rate: Rate of the tuned block.
        head_learning_rate: Rate of the head.
        seed: Of the order of the batches and of the validation images.
    """

    def __init__(
        self,
        backbone: Backbone,
        data: ImageData,
        method: FinetuningMethod,
        head: Callable[[int, int], nn.Module] = nn.Linear,
        *,
        learning_rate: float,
        head_learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        self.backbone = backbone
        self.data = data
        self.seed = seed
        self.model = ImageClassifier(backbone, data.num_classes, method=method, head=head)
        self.device = next(backbone.parameters()).device
        self.model.to(self.device)
        self._start_head()
        tuned = [value for value in backbone.parameters() if value.requires_grad]
        beside = [value for part in (self.model.head, method) for value in part.parameters() if value.requires_grad]
        groups = [{"params": tuned, "lr": learning_rate}, {"params": beside, "lr": head_learning_rate}]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._kept: dict[str, Tensor] = {}
        self._batches = self._train_batches()

    def advance(self, steps: int) -> Measurement:
        """Train for some steps, with rates that rise and then fall to zero, and measure on validation images."""
        with self._weights_of_this_trial():
            for step in range(steps):
                self._set_rates(_cycle(step, steps))
                self._step(*next(self._batches))
            return self._measure()

    def _set_rates(self, factor: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = factor * rate

    def _start_head(self) -> None:
        head, method = self.model.head, self.model.method
        if type(head) is not nn.Linear:
            return
        number = _PROBE_BATCHES * self.data.batch_size
        features, labels = method_features(method, self.backbone, subset_batches(self.data, "train", number, self.seed))
        probe = fit_probe(features, labels, self.data.num_classes, _FIRST_WEIGHT_DECAY)
        head.load_state_dict(probe.state_dict())

    def _refitted_probe(self) -> nn.Linear:
        number = _PROBE_BATCHES * self.data.batch_size
        batches = subset_batches(self.data, "train", number, self.seed)
        return fit_probe(*method_features(self.model.method, self.backbone, batches), self.data.num_classes)

    def _step(self, images: Tensor, labels: Tensor) -> None:
        self.model.train()
        loss = self.model.loss(self.model(images.to(self.device)), labels.to(self.device))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _measure(self) -> Measurement:
        number = max(_FEWEST_VAL_IMAGES, len(self.data.train_set))
        batches = subset_batches(self.data, "val", number, self.seed)
        features, labels = method_features(self.model.method, self.backbone, batches)
        accuracy = (self._refitted_probe()(features).argmax(1) == labels).double().mean().item()
        present, numbered = torch.unique(labels, return_inverse=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="NC1 is undefined")  # the accuracy says so, too
            spread = nc1(features, numbered).item() if len(present) > 1 else math.nan
        return Measurement(accuracy, spread, len(labels))

    def _train_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        images = self.data.train_set
        while True:
            yield from torch.utils.data.DataLoader(
                images,
                batch_size=self.data.batch_size,
                shuffle=True,
                generator=generator,
                num_workers=self.data.num_workers,
            )

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


def _cycle(step: int, steps: int) -> float:
    """Rise over the first quarter, then fall along a cosine."""
    warm = max(1, steps // 4)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
