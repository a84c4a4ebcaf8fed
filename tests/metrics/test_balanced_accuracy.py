import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from nc_finetune.metrics.balanced_accuracy import BalancedAccuracy


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_value_is_that_of_scikit_learn(seed: int, batch_size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor([8.0, 2, 1, 0, 1]), 50, replacement=True, generator=generator)
    logits = torch.randn(50, 5, generator=generator) + torch.nn.functional.one_hot(labels, 5)
    metric = BalancedAccuracy(5)
    for batch in range(0, 50, batch_size):
        metric.update(logits[batch : batch + batch_size], labels[batch : batch + batch_size])
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(labels, logits.argmax(1))
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


def test_a_class_that_is_predicted_and_never_occurs_is_left_out() -> None:
    metric = BalancedAccuracy(3)
    metric.update(torch.tensor([0, 2, 1, 1]), torch.tensor([0, 0, 1, 1]))
    assert metric.compute().item() == pytest.approx(0.75)
