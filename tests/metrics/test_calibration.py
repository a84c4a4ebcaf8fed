import numpy as np
import pytest
import torch
from torch import Tensor

from nc_finetune.functional import temperature
from nc_finetune.metrics import calibration_error


def by_hand(logits: Tensor, target: Tensor, scale: float = 1.0) -> float:
    values = logits.double().numpy() / scale
    shares = np.exp(values - values.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    sure, right = shares.max(1), shares.argmax(1) == target.numpy()
    bins = np.minimum((sure * 15).astype(int), 14)
    return float(sum(abs((sure[bins == b] - right[bins == b]).sum()) for b in range(15)) / len(sure))


def sample(number: int = 300, classes: int = 5) -> tuple[Tensor, Tensor]:
    logits = 3 * torch.randn(number, classes)
    return logits, torch.distributions.Categorical(logits=logits / 2).sample()


@pytest.mark.parametrize("scale", [1.0, 0.3, 2.0])
def test_equals_the_oracle(scale: float) -> None:
    logits, target = sample()
    assert calibration_error(logits, target, scale) == pytest.approx(by_hand(logits, target, scale), abs=1e-6)


def test_the_right_temperature_calibrates() -> None:
    logits, target = sample(20000)
    assert calibration_error(logits, target) > 0.1
    assert calibration_error(logits, target, temperature(logits, target).item()) < 0.02


def test_half_precision_and_probabilities_beyond_one_half_are_no_matter() -> None:
    logits, target = sample()
    assert calibration_error(logits.bfloat16(), target) == pytest.approx(
        by_hand(logits.bfloat16().float(), target), abs=1e-6
    )


def test_rows_that_are_not_finite_are_left_out() -> None:
    logits, target = sample()
    broken = torch.cat([logits, torch.full((3, 5), torch.nan)])
    labels = torch.cat([target, torch.zeros(3, dtype=torch.long)])
    assert calibration_error(broken, labels) == calibration_error(logits, target)
    assert np.isnan(calibration_error(broken[-3:], labels[-3:]))


@pytest.mark.parametrize(
    ("target", "scale", "message"),
    [
        (torch.zeros(300, 5), 1.0, r"one label each: .* got \(300, 5\) and \(300, 5\)"),
        (torch.zeros(3, dtype=torch.long), 1.0, r"got \(300, 5\) and \(3,\)"),
        (torch.zeros(300, dtype=torch.long), 0.0, "temperature must be above 0, got 0"),
    ],
)
def test_bad_arguments_are_named(target: Tensor, scale: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration_error(sample()[0], target, scale)
