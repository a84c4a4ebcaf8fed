from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from nc_finetune.losses import FocalLoss, class_weights

COUNTS = [5, 50, 500]


def test_inverse_frequency_is_scikit_learns_balanced_up_to_a_factor() -> None:
    labels = np.repeat(np.arange(3), COUNTS)
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(class_weights(COUNTS).numpy(), theirs / theirs.mean(), rtol=1e-6)


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.999, 0.9999])
def test_effective_number_is_the_formula(beta: float) -> None:
    counts = np.array(COUNTS, dtype=np.float64)
    expected = (1 - beta) / (1 - beta**counts)
    np.testing.assert_allclose(class_weights(COUNTS, beta).numpy(), expected / expected.mean(), rtol=1e-6)


def test_ends_of_beta_are_no_weights_and_inverse_frequency() -> None:
    assert class_weights(COUNTS, 0).tolist() == [1, 1, 1]
    near = class_weights(torch.tensor(COUNTS), 1 - 1e-14)  # 1 - beta^n has lost all but two digits here
    torch.testing.assert_close(near, class_weights(COUNTS), rtol=1e-5, atol=0)


def test_weights_fit_a_loss() -> None:
    weight = class_weights(COUNTS, 0.99)
    assert weight.sum().item() == pytest.approx(3)
    assert torch.equal(FocalLoss(weight=weight).weight, weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("counts", [[3, 0], [], [3, -1], [[1, 2]], [float("nan"), 1]])
def test_classes_without_samples_are_refused(counts: Any) -> None:
    with pytest.raises(ValueError, match="counts must hold one number of at least 1 for each class"):
        class_weights(counts)


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_beta_must_be_a_share(beta: float) -> None:
    with pytest.raises(ValueError, match=r"beta must lie in \[0, 1\]"):
        class_weights(COUNTS, beta)
