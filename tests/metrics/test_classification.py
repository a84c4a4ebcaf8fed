import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from nc_finetune.metrics import check_targets, classification_metrics


def make_batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.rand(number, 4, generator=generator), torch.randint(2, (number, 4), generator=generator))
        for number in (7, 5)
    ]


def test_metrics_of_several_labels_are_those_of_scikit_learn() -> None:
    metrics = classification_metrics(4, multilabel=True)
    for batch in make_batches():
        for metric in metrics.values():
            metric.update(*batch)  # type: ignore[operator]
    scores, tags = (torch.cat(part).numpy() for part in zip(*make_batches(), strict=True))
    values = {name: metric.compute().item() for name, metric in metrics.items()}  # type: ignore[operator]
    assert values == {
        "average_precision": pytest.approx(average_precision_score(tags, scores, average="macro")),
    }


def test_metrics_of_one_label_count_samples_and_classes() -> None:
    targets = torch.tensor([0, 0, 0, 1])
    values = {name: metric(torch.eye(3)[[0, 0, 2, 1]], targets) for name, metric in classification_metrics(3).items()}  # type: ignore[operator]
    assert values == {"accuracy": pytest.approx(3 / 4), "balanced_accuracy": pytest.approx(5 / 6)}


@pytest.mark.parametrize(
    ("targets", "multilabel", "message"),
    [
        (
            torch.zeros(2, 3),
            False,
            r"shape \(2,\), got torch.float32 of shape \(2, 3\) .* use PickAllLabelsLoss",
        ),
        (torch.zeros(2), False, r"labels must be integers of shape \(2,\), got torch.float32"),
        (torch.tensor([0, 3]), False, r"labels must lie in \[0, 3\), got 0 to 3; set num_classes"),
        (torch.tensor([0, 1]), True, r"0 or 1 for each class of shape \(2, 3\), got torch.int64 of shape \(2,\)"),
        (torch.full((2, 3), 2), True, "labels must be 0 or 1, got values from 2 to 2"),
    ],
)
def test_targets_that_cannot_be_are_refused(targets: Tensor, multilabel: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_targets(targets, 2, 3, multilabel)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.uint8, torch.int64])
def test_several_labels_come_in_any_dtype(dtype: torch.dtype) -> None:
    tags = torch.tensor([[1, 0, 1]])
    assert torch.equal(check_targets(tags.to(dtype), 1, 3, multilabel=True), tags)
