import math

import numpy as np
import pytest
import torch
from reference import losses as reference
from torch import Tensor, nn

from nc_finetune.losses import PickAllLabelsLoss

TAGS = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 1]])
WEIGHT = [0.5, 2.0, 1.0, 1.5]


def logits() -> Tensor:
    return 3 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_loss_equals_the_oracle(average: bool, weight: list[float] | None) -> None:
    rows = zip(logits().numpy(), TAGS.numpy(), strict=True)
    expected = [reference.pick_all_labels(z, tags, average, np.array(weight or [1.0] * 4)) for z, tags in rows]
    loss = PickAllLabelsLoss(average, weight)(logits(), TAGS)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-9)


def test_one_label_each_is_cross_entropy() -> None:
    labels = torch.tensor([2, 0, 3])
    expected = nn.functional.cross_entropy(logits(), labels)
    for average in (False, True):
        loss = PickAllLabelsLoss(average)(logits(), nn.functional.one_hot(labels, 4))
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_labels_may_have_any_dtype(dtype: torch.dtype) -> None:
    loss = PickAllLabelsLoss()
    torch.testing.assert_close(loss(logits(), TAGS.to(dtype)), loss(logits(), TAGS))


@pytest.mark.parametrize("average", [False, True])
def test_sample_without_labels_teaches_nothing(average: bool) -> None:
    given = logits().requires_grad_()
    tags = TAGS * torch.tensor([[1], [0], [1]])
    PickAllLabelsLoss(average)(given, tags).backward()
    assert given.grad is not None
    assert given.grad[1].abs().max() == 0
    assert given.grad[[0, 2]].abs().min() > 0


@pytest.mark.parametrize("average", [False, True])
def test_gradients_are_those_of_the_formula(average: bool) -> None:
    loss = PickAllLabelsLoss(average, WEIGHT).double()
    assert torch.autograd.gradcheck(lambda z: loss(z, TAGS), logits().requires_grad_())


def test_half_precision_is_summed_in_single() -> None:
    rounded = logits().half()
    loss = PickAllLabelsLoss()(rounded, TAGS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, PickAllLabelsLoss()(rounded.float(), TAGS))


def test_what_is_no_multi_label_data_is_refused() -> None:
    loss = PickAllLabelsLoss()
    with pytest.raises(ValueError, match=r"must both have shape \(N, K\).*got \(3, 4\) and \(3,\)"):
        loss(logits(), torch.zeros(3))
    for bad in (2.0, -1.0, 0.5, math.nan):
        with pytest.raises(ValueError, match="labels must be 0 or 1, got values from"):
            loss(logits(), torch.full((3, 4), bad))
    with pytest.raises(ValueError, match="weight has 3 classes, the logits have 4"):
        PickAllLabelsLoss(weight=[1.0, 1.0, 1.0])(logits(), TAGS)
