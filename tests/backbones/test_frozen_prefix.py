"""The cut of a model before what it tunes."""

from typing import Any

import pytest
import torch

from nc_finetune import ImageClassifier
from nc_finetune.backbones import FrozenPrefix, SplitError, TimmBackbone, resumed
from nc_finetune.methods import FullFinetuning, LayerFinetuning

IMAGES = torch.rand(4, 3, 32, 32)


def make_model(method: Any = None) -> ImageClassifier:
    return ImageClassifier(TimmBackbone("test_resnet", None), 3, method=method or LayerFinetuning("layer2.0")).eval()


@torch.no_grad()
def test_it_is_cut_before_what_is_tuned() -> None:
    model = make_model()
    split = FrozenPrefix(model, IMAGES)
    kept = split.prefix(IMAGES)
    assert (split.cut, list(kept)) == ("layer2.0", ["layer2.0"])
    with resumed(kept, split) as blanks:
        logits = model(blanks)
    assert torch.equal(logits, model(IMAGES))


def test_a_method_that_tunes_everything_leaves_none() -> None:
    with pytest.raises(SplitError, match=r"leaves no frozen prefix of 'test_resnet'"):
        FrozenPrefix(make_model(FullFinetuning()), IMAGES)


def test_batches_of_its_outputs_are_told_from_others() -> None:
    split = FrozenPrefix(make_model(), IMAGES)
    kept, labels = split.prefix(IMAGES), torch.arange(4) % 3
    assert split.holds((kept, labels))
    assert split.holds([kept, labels])
    for other in (IMAGES, (IMAGES, labels), {"image": IMAGES, "label": labels}, ({"image": IMAGES}, labels), (), None):
        assert not split.holds(other)


def test_images_are_what_a_model_is_called_with_and_outputs_need_the_cut() -> None:
    with resumed(IMAGES, None) as images:
        assert images is IMAGES
    with pytest.raises(ValueError, match="the network is not split; set split first"):
        resumed({"layer2.0": IMAGES}, None)
