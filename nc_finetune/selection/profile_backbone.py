"""Everything about the blocks of a backbone on some data."""

from __future__ import annotations

from collections.abc import Callable

from nc_finetune.backbones import Backbone
from nc_finetune.data import ImageData
from nc_finetune.functional.readout import MAX_CHOICE_SAMPLES, choose_columns
from nc_finetune.methods import FinetuningMethod, LayerReadout
from nc_finetune.selection.features import method_features, subset_batches
from nc_finetune.selection.key_layer import choose_key_layer
from nc_finetune.selection.presentation import Profile
from nc_finetune.selection.profile import block_costs, law_of, measure_blocks
from nc_finetune.selection.rules import simple_rules


def profile_backbone(
    backbone: Backbone,
    data: ImageData,
    make_method: Callable[[str], FinetuningMethod] | None = None,
    *,
    epochs: int = 15,
    learning_rate: float | None = None,
    report: Callable[[str], None] | None = None,
    by_class: bool = False,
) -> Profile:
    """Measure every block, count its costs, and choose one by short trials.

    Args:
        backbone: The pre-trained network, on the device to compute on.
        data: Train and validation split; the test split is not touched.
        make_method: From a block to the method that is to tune it; ``None`` runs no trials.
        epochs: Passes of the fine-tuning that the block is for.
        learning_rate: Rate of the block; ``None`` is the method's default.
        report: Told a line for each thing that is done; ``None`` tells nobody.
        by_class: Also measure each class in each layer, and find the closest pairs.

    Returns:
        The profile.
    """
    tell = report or (lambda line: None)
    measures = measure_blocks(backbone, data, by_class=by_class)
    tell(f"measured {len(measures)} layers of {backbone.name}")
    choice = None
    if make_method is not None:
        choice = choose_key_layer(
            backbone, data, make_method, epochs=epochs, learning_rate=learning_rate, report=report
        )
    return Profile(
        backbone=backbone.name,
        measures=measures,
        costs=block_costs(backbone, data),
        law=law_of(measures),
        readout=_readout_accuracies(backbone, data),
        choice=choice,
        other_rules=simple_rules(backbone, data),
    )


def _readout_accuracies(backbone: Backbone, data: ImageData) -> dict[str, float]:
    """Leave out one of some training images after the other, by groups of layers; none where blocks are no vectors."""
    method = LayerReadout()
    try:
        groups = method.columns(backbone)
        features, labels = method_features(method, backbone, subset_batches(data, "train", MAX_CHOICE_SAMPLES))
        found = choose_columns(
            features, labels, data.num_classes, groups, next(iter(groups)), max_samples=MAX_CHOICE_SAMPLES
        )
        return found.accuracies
    except ValueError:  # also of classes of one image each
        return {}
