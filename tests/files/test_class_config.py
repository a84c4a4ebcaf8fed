"""Objects as JSON and back."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from nc_finetune.files.class_config import build, describe, describe_if_possible
from nc_finetune.heads import CosineHead
from nc_finetune.methods import SkipConnectionFinetuning


@pytest.mark.parametrize(
    "value", [None, 3, "text", SkipConnectionFinetuning(key_layer=("4.1", "4.2"), scale="matched")]
)
def test_what_is_described_is_built_again(value: object) -> None:
    config = json.loads(json.dumps(describe(value)))
    assert describe(build(config)) == describe(value)


def test_a_factory_stays_a_factory() -> None:
    head = build(describe(partial(CosineHead, temperature=0.5)))(8, 3)
    assert isinstance(head, CosineHead)
    assert head.temperature == 0.5


@pytest.mark.parametrize(
    "value",
    [lambda: 0, nn.Linear(4, 2), torch.ones(2), partial(CosineHead, temperature=torch.ones(1))],
    ids=["lambda", "arguments not kept", "tensor", "tensor in a factory"],
)
def test_what_cannot_be_described_is_said_to_be(value: object) -> None:
    with pytest.raises(TypeError):
        describe(value)
    assert describe_if_possible(value) is None


def test_foreign_classes_need_trust() -> None:
    config = {"class_path": "collections.OrderedDict", "init_args": {}}
    with pytest.raises(ValueError, match="trust=True"):
        build(config)
    assert build(config, trust=True) == {}
