"""What a model takes from the data that it meets: how many classes, how often, under which names."""

from __future__ import annotations

from typing import Any

from nc_finetune._common.data_facts import DataFacts
from nc_finetune.backbones import OpenClipBackbone
from nc_finetune.heads import ZeroShotHead
from nc_finetune.losses import ClassBalanced


def take_facts(model: Any, facts: DataFacts) -> None:
    """Compare ``num_classes`` with the data, where these know; count classes, and write rows of text, where asked for.

    Raises:
        ValueError: If the data have another number of classes, or a zero-shot head waits for a text tower that is not
            there.
    """
    if facts.num_classes not in (None, model.num_classes):
        raise ValueError(
            f"the data have {facts.num_classes} classes, the model was built for num_classes={model.num_classes}"
        )
    if isinstance(model.loss, ClassBalanced) and (counts := facts.class_counts(model.num_classes)) is not None:
        model.loss.use_class_counts(counts)
    waiting = [part for part in model.head.modules() if isinstance(part, ZeroShotHead) and part.awaits_text]
    if not waiting:
        return
    if not isinstance(model.backbone, OpenClipBackbone):
        raise ValueError(
            f"a zero-shot head needs a CLIP, 'open_clip:...', and {model.backbone.name!r} has no text tower; choose"
            " one, or another head"
        )
    encoder = model.backbone.text_encoder()
    for head in waiting:
        head.write_(encoder, facts.class_names(model.num_classes))
