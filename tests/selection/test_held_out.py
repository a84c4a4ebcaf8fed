"""What held-out logits say of a candidate and its epochs."""

import pytest
import torch

from nc_finetune.metrics import AveragePrecision
from nc_finetune.selection import HeldOut
from nc_finetune.selection.held_out import joined


def from_right(right: list[list[int]], folds: int = 5) -> HeldOut:
    """Return logits by which some images are recognised after each epoch, those of class 0."""
    shown = torch.tensor(right)
    logits = torch.stack([shown.float(), 1 - shown.float()], dim=2)
    number = shown.shape[1]
    return HeldOut(
        logits, torch.zeros(number, dtype=torch.int64), torch.arange(number), torch.arange(number) % folds, (2, 4, 6)
    )


def test_the_score_is_the_share_that_is_recognised() -> None:
    found = from_right([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    assert found.scores == [0.25, 0.5, 0.75]
    assert (found.epoch, found.score) == (6, 0.75)
    assert torch.equal(found.chosen_logits, found.logits[2])
    assert torch.equal(found.probabilities(4), found.logits[1].softmax(1))
    with pytest.raises(ValueError, match=r"epoch must be one of \[2, 4, 6\], got 3"):
        found.probabilities(3)


def test_the_fewest_epochs_that_are_as_good_are_taken() -> None:
    same = [1] * 900 + [0] * 100
    other = [1] * 899 + [0] * 100 + [1]  # as many, not the same ones
    assert from_right([[0] * 1000, same, other]).epoch == 4
    lucky = [1] * 904 + [0] * 96
    assert from_right([[0] * 1000, same[::-1], lucky]).epoch == 4  # four of 1,000, far within one standard error
    steady = [1] * 904 + [0] * 96
    assert from_right([[0] * 1000, same, steady]).epoch == 6  # the same ones and four more: no chance


def test_of_few_images_half_a_point_is_the_limit() -> None:
    assert from_right([[1, 0, 0, 1, 0, 1, 0, 1], [0, 1, 1, 0, 1, 0, 1, 1], [0] * 8]).epoch == 4


def test_what_is_not_finite_recognises_nothing() -> None:
    found = from_right([[1, 1], [1, 1], [1, 1]])
    found.logits[2] = float("nan")
    assert found.scores == [1.0, 1.0, 0.0]


def test_of_several_labels_it_is_average_precision_fold_by_fold() -> None:
    torch.manual_seed(0)
    logits, folds = torch.randn(3, 40, 4), torch.arange(40) % 2
    targets = (torch.rand(40, 4) < 0.4).long()
    targets[folds == 0, 3] = 0  # a fold does not have one of the labels
    found = HeldOut(logits, targets, torch.arange(40), folds, (1, 2, 3), independent_classes=True)
    parts = []
    for fold in (0, 1):
        metric = AveragePrecision(4)
        metric.update(logits[1][folds == fold].sigmoid(), targets[folds == fold])
        parts.append(float(metric.compute()))
    assert found.multi_label
    assert found.scores[1] == pytest.approx(sum(parts) / 2)


def test_folds_are_joined_in_the_order_of_the_images() -> None:
    whole = from_right([[1, 0, 0, 1], [1, 1, 0, 0], [1, 1, 1, 0]], folds=2)
    parts = [
        HeldOut(
            whole.logits[:, rows], whole.targets[rows], whole.items[rows], whole.folds[rows], whole.epochs, seconds=2
        )
        for rows in (torch.tensor([1, 3]), torch.tensor([0, 2]))
    ]
    again = joined(parts)
    assert torch.equal(again.logits, whole.logits)
    assert (again.items.tolist(), again.folds.tolist(), again.seconds) == ([0, 1, 2, 3], [0, 1, 0, 1], 4)
