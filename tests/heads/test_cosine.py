import math

import pytest
import torch

from nc_finetune.heads import CosineHead


def test_logits_are_cosines_over_the_temperature() -> None:
    torch.manual_seed(0)
    head, features = CosineHead(5, 3, temperature=0.2), torch.randn(4, 5)
    expected = torch.cosine_similarity(features.unsqueeze(1), head.direction.unsqueeze(0), dim=2) / 0.2
    torch.testing.assert_close(head(features), expected)


def test_lengths_of_features_and_rows_do_not_matter() -> None:
    torch.manual_seed(0)
    head, features = CosineHead(5, 3), torch.randn(4, 5)
    logits = head(features)
    head.direction.data.mul_(torch.tensor([[1e-3], [2.0], [1e4]]))
    torch.testing.assert_close(head(100 * features), logits)


def test_learned_temperature_starts_where_it_was_put_and_gets_a_gradient() -> None:
    torch.manual_seed(0)
    head = CosineHead(5, 3, temperature=0.2, learn_temperature=True)
    assert head.temperature.item() == pytest.approx(0.2)
    head(torch.randn(4, 5)).square().sum().backward()
    assert head.log_gain is not None
    assert head.log_gain.grad is not None
    assert head.log_gain.grad.item() > 0  # a greater gain, greater logits
    head.log_gain.data.fill_(math.log(4))
    assert head.temperature.item() == pytest.approx(0.05)


def test_reset_draws_new_directions_and_the_old_temperature() -> None:
    head = CosineHead(5, 3, temperature=0.2, learn_temperature=True)
    before = head.direction.clone()
    assert head.log_gain is not None
    head.log_gain.data.fill_(1.0)
    head.reset_parameters()
    assert head.temperature.item() == pytest.approx(0.2)
    assert not torch.equal(head.direction, before)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be a positive, finite number"):
        CosineHead(5, 3, temperature=temperature)
