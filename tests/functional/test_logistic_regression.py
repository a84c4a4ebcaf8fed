import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from nc_finetune.functional.logistic_regression import logistic_path


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    centres = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    noise = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    return 5 * (centres[labels] + 2 * noise) + 100, labels


def test_path_is_that_of_scikit_learn(samples: tuple[Tensor, Tensor]) -> None:
    features, labels = samples
    scale = float((features - features.mean(0)).square().mean().sqrt())
    for fit in logistic_path(features, labels, 3, [1e-1, 1e-3], max_iterations=1000, tolerance=1e-9):
        theirs = LogisticRegression(C=1 / (60 * fit.l2 * scale**2), tol=1e-10, max_iter=10000)
        theirs.fit((features - features.mean(0)).numpy(), labels.numpy())
        np.testing.assert_allclose(fit.weight.numpy(), theirs.coef_, atol=1e-5)


def test_scale_and_offset_of_the_features_do_not_matter(samples: tuple[Tensor, Tensor]) -> None:
    features, labels = samples
    two = (features, 1e3 * features - 7)
    (plain,), (moved,) = (
        logistic_path(values, labels, 3, [1e-2], tolerance=1e-8) for values in (features, 1e3 * features - 7)
    )
    logits = [values @ fit.weight.T + fit.bias for values, fit in zip(two, (plain, moved), strict=True)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def test_weaker_penalties_fit_better(samples: tuple[Tensor, Tensor]) -> None:
    path = logistic_path(*samples, 3, [1e-4, 1.0, 1e-2])
    assert [fit.l2 for fit in path] == [1.0, 1e-2, 1e-4]
    assert path[0].loss > path[1].loss > path[2].loss


@pytest.mark.parametrize(("l2", "found"), [([], r"got \[\]"), ([1.0, 0.0], r"got \[1.0, 0.0\]")])
def test_penalties_must_be_above_zero(samples: tuple[Tensor, Tensor], l2: list[float], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        logistic_path(*samples, 3, l2)


def test_features_must_be_finite(samples: tuple[Tensor, Tensor]) -> None:
    features, labels = samples
    features[3, 2] = torch.inf
    with pytest.raises(ValueError, match="must be finite"):
        logistic_path(features, labels, 3, [1.0])
