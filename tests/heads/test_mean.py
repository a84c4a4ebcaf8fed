"""Two heads whose log-probabilities are averaged."""

from functools import partial

import pytest
import torch
from torch import nn

from nc_finetune.files.class_config import build, describe
from nc_finetune.heads import CosineHead, MeanHead

K, D = 3, 5


def test_logits_are_the_mean_of_log_probabilities() -> None:
    head, features = MeanHead(D, K, second=CosineHead), torch.randn(7, D)
    parts = [part(features).log_softmax(1) for part in (head.first, head.second)]
    expected = ((parts[0] + parts[1]) / 2).softmax(1)
    torch.testing.assert_close(head(features).softmax(1), expected)


def test_each_head_sees_its_own_columns_at_its_own_scale() -> None:
    head, features = MeanHead(D, K, widths=(2, 3)), torch.randn(7, D)
    head.scales.copy_(torch.tensor([0.25, 2.0]))
    expected = 0.25 * head.first(features[:, :2]) + 2 * head.second(features[:, 2:])
    torch.testing.assert_close(head(features), expected)


def test_description_builds_the_same_head() -> None:
    factory = partial(MeanHead, first=partial(nn.Linear, bias=False), second=CosineHead, widths=(2, 3))
    again = build(describe(factory))(D, K)
    again.load_state_dict(factory(D, K).state_dict())
    assert again.first.bias is None
    assert again.widths == (2, 3)


def test_widths_that_leave_features_out_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be in_features=5 together, got \(2, 2\)"):
        MeanHead(D, K, widths=(2, 2))
