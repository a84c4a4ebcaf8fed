"""Which labels are doubted, and in which order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nc_finetune.functional import temperature
from nc_finetune.tuning.doubts import doubts, label_scores

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])


def some_logits() -> torch.Tensor:
    noise = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    return noise + 3 * F.one_hot(torch.tensor([0, 0, 1, 1, 2, 2, 2, 0]), 3)  # the last two are of other classes


def test_the_least_probable_label_comes_first_at_one_temperature() -> None:
    logits = some_logits()
    shares = (logits.double() / temperature(logits, LABELS)).softmax(1)
    given = shares.gather(1, LABELS.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(label_scores(logits, LABELS), given.log())
    found = doubts(logits, LABELS)
    assert {6, 7} <= {one.place for one in found}
    assert [one.given for one in found] == sorted(one.given for one in found)
    assert all(one.given == pytest.approx(given[one.place].item()) for one in found)
    assert all(one.suggested == shares[one.place].argmax() != one.label == LABELS[one.place] for one in found)
    assert doubts(logits, LABELS, 1) == found[:1]


def test_images_that_nobody_has_judged_are_left_out() -> None:
    logits = some_logits()
    logits[7] = torch.nan
    assert label_scores(logits, LABELS).isnan().tolist() == [False] * 7 + [True]
    assert 7 not in {one.place for one in doubts(logits, LABELS)}
    assert doubts(torch.full((8, 3), torch.nan), LABELS) == []


def test_logits_may_be_of_any_scale_and_precision() -> None:
    whole = [one.place for one in doubts(some_logits(), LABELS)]
    assert [one.place for one in doubts(1e4 * some_logits().double(), LABELS)] == whole
    assert [one.place for one in doubts(some_logits().bfloat16(), LABELS)] == whole
