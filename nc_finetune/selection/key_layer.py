"""Which block to tune: short measured trials, successively halved."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypedDict

import torch

from nc_finetune.backbones import Backbone
from nc_finetune.data import ImageData
from nc_finetune.methods import FinetuningMethod, LayerFinetuning
from nc_finetune.selection._trials.block_trial import BlockTrial, FoldedTrial
from nc_finetune.selection._trials.halving import Rung, Trial, best_of, rounds_of, spread_out, successive_halving
from nc_finetune.selection._trials.trial_samples import FoldedSamples, TrialSamples
from nc_finetune.selection.features import method_features, require_one_label, require_validation, subset_batches


class Rates(TypedDict):
    """Learning rates of a trial."""

    learning_rate: float
    head_learning_rate: float


RatesOf = Callable[[FinetuningMethod], Rates]
MakeMethod = Callable[[str], FinetuningMethod]

_CANDIDATES = 6
# A step of a block beside a frozen network costs a third to a quarter of one through all that follows the block, and
# where the rest of the feature stands still, so few steps as elsewhere tell blocks apart less well. Nor do eight steps
# of the first round, which is what 200 images leave: SCL-FT came to 48 % by its choice, and to 56 % by that of 24.
_MOST_FITS = 3
_LEAST_STEPS = 24


@dataclass(frozen=True)
class KeyLayerChoice:
    """The chosen block, and how it was chosen.

    Attributes:
        block: Its name.
        rungs: The rounds of trials.
        seconds: What they took.
        other_rules: What simpler rules would have chosen, by rule, where that was asked for.
        judged_by: Which images judged: ``"validation"``, or ``"held-out"`` training images.
    """

    block: str
    rungs: list[Rung]
    seconds: float
    other_rules: dict[str, str] = field(default_factory=dict)
    judged_by: str = "validation"

    @property
    def reason(self) -> str:
        """The choice in words."""
        last = self.rungs[-1]
        found = last.measured[self.block]
        others = len(self.rungs[0].measured)
        return (
            f"{self.block} recognised {100 * found.accuracy:.1f} % of {found.images} {self.judged_by} images after"
            f" {last.steps} steps, NC1 {found.nc1:.3g}: the best of {others} blocks in {len(self.rungs)} rounds of"
            f" trials ({self.seconds:.0f} s)"
        )

    def to_json(self) -> dict[str, Any]:
        """Return what a result keeps: by round, steps and by block accuracy in per cent and NC1."""
        rounds = [
            {
                "steps": rung.steps,
                "blocks": {
                    name: [round(100 * found.accuracy, 2), round(found.nc1, 5)] for name, found in rung.measured.items()
                },
            }
            for rung in self.rungs
        ]
        return {"block": self.block, "seconds": self.seconds, "rounds": rounds, "other_rules": self.other_rules}


def choose_key_layer(
    backbone: Backbone,
    data: ImageData,
    make_method: Callable[[str], FinetuningMethod] = LayerFinetuning,
    *,
    epochs: int = 15,
    learning_rate: float | None = None,
    head_learning_rate: float = 1e-3,
    blocks: Sequence[str] | None = None,
    max_tuned_percent: float = 10.0,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
    folds: int | None = None,
) -> KeyLayerChoice:
    """Choose the block to tune by short trials on the training split, judged on the validation split, or by folds.

    Up to six evenly spaced blocks of at most 10 % of the parameters are tuned for a few steps each, the better half for
    some more, and so on; a trial is judged by accuracy with NC1 as a second witness
    (:func:`~nc_finetune.selection._trials.halving.score`). The smallest pre-trained NC1 alone may point at the worst
    block. All trials together take as many training steps as one fine-tuning, or up to three times as many: where
    blocks are tuned beside the network, whose steps cost less, and where the first round would have less than 24 steps
    a block. The test split is not touched, and the backbone is left as it was.

    Args:
        backbone: The pre-trained network, on the device to compute on.
        data: Train and validation split.
        make_method: From a block to the method that tunes it.
        epochs: Passes of the fine-tuning that the choice is for.
        learning_rate: Rate of the block; ``None`` is the method's default.
        head_learning_rate: Rate of the head.
        blocks: Those to choose from; ``None`` takes up to six of those that the method can tune.
        max_tuned_percent: Of these, leave out such as would tune more than this share of the parameters, the head's
            included; where all do, none is left out.
        seed: Of batches, and of the images where there are very many.
        report: Told a line for each trial of each round; ``None`` tells nobody.
        folds: Judge on so many folds of the training images in place of the validation split, which is not touched
            then; all trials together take as many steps more.

    Returns:
        The choice with its reason.

    Raises:
        ValueError: If the method can tune none of the blocks, images have several labels, ``epochs`` is below 1, or
            there are no images to judge by.

    Source:
        The trials: Jamieson & Talwalkar 2016, arXiv:1502.07943.
    """
    require_one_label(data, "trials of blocks")
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if folds is None:
        require_validation(data, "trials of blocks")
    start = time.perf_counter()

    def rates(method: FinetuningMethod) -> Rates:
        rate = learning_rate or method.default_learning_rate or head_learning_rate
        return Rates(learning_rate=rate, head_learning_rate=head_learning_rate)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        begin: Callable[[str], Trial]
        if folds is None:
            begin = _on_validation(backbone, TrialSamples.load(data, seed), make_method, rates, seed)
        else:
            begin = _on_folds(backbone, FoldedSamples.load(data, folds, seed), make_method, rates, seed)
        if blocks is None:
            blocks = spread_out(_tunable(backbone, data, make_method, max_tuned_percent), _CANDIDATES)
        if not blocks:
            raise ValueError(f"{backbone.name!r} has no block that can be tuned in this way; name its key layer")
        batches = -(-len(data.train_set) // data.batch_size)
        beside = bool(make_method(blocks[0]).input_sources(backbone))
        rungs = successive_halving(blocks, begin, _steps(epochs * batches, len(blocks), beside), report)
    judged_by = "validation" if folds is None else "held-out"
    return KeyLayerChoice(best_of(rungs[-1]), rungs, time.perf_counter() - start, judged_by=judged_by)


def _steps(fit: int, blocks: int, beside: bool) -> int:
    """Return how many steps all trials take together, by how many one fine-tuning takes."""
    enough = _LEAST_STEPS * blocks * rounds_of(blocks)
    return fit * _MOST_FITS if beside else min(max(fit, enough), fit * _MOST_FITS)


def _on_validation(
    backbone: Backbone, samples: TrialSamples, make_method: MakeMethod, rates: RatesOf, seed: int
) -> Callable[[str], BlockTrial]:
    """Return what begins the trial of a block, from the frozen prefix of that before it."""
    before: BlockTrial | None = None

    def begin(block: str) -> BlockTrial:
        nonlocal before
        method = make_method(block)
        before = BlockTrial(backbone, samples, method, **rates(method), seed=seed, before=before)
        return before

    return begin


def _on_folds(
    backbone: Backbone, samples: FoldedSamples, make_method: MakeMethod, rates: RatesOf, seed: int
) -> Callable[[str], FoldedTrial]:
    """Return the same for trials on all folds."""
    before: FoldedTrial | None = None

    def begin(block: str) -> FoldedTrial:
        nonlocal before
        make = partial(make_method, block)
        before = FoldedTrial(backbone, samples, make, seed=seed, before=before, **rates(make()))
        return before

    return begin


def _tunable(
    backbone: Backbone, data: ImageData, make_method: Callable[[str], FinetuningMethod], max_percent: float
) -> list[str]:
    """Leave out blocks without parameters, those too wide for a skip to the classifier, and those too large."""
    images, labels = next(iter(subset_batches(data, "train", 2)))
    batch = [(images[:2], labels[:2])]
    found: dict[str, float] = {}
    for block in backbone.block_names:
        method = make_method(block)
        try:
            method.tuned_modules(backbone)
            method_features(method, backbone, batch)
        except ValueError:
            continue
        found[block] = _tuned_percent(backbone, method, data.num_classes)
    return [block for block, percent in found.items() if percent <= max_percent] or list(found)


def _tuned_percent(backbone: Backbone, method: FinetuningMethod, num_classes: int) -> float:
    head = (backbone.num_features + 1) * num_classes
    tuned = {value for part in method.tuned_modules(backbone) for value in part.parameters()}
    total = sum(value.numel() for value in backbone.parameters())
    return 100 * (sum(value.numel() for value in tuned) + head) / (total + head)
