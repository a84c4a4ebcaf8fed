"""Heads of comparisons against scikit-learn, and against what they are when samples are really left out."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from torch import Tensor

from nc_finetune.functional.class_statistics import ClassStatistics, class_statistics
from nc_finetune.functional.reference_heads import (
    solve_logistic,
    solve_nearest_mean,
    solve_neighbors,
    solve_priors,
    votes_of_neighbors,
)


@pytest.fixture(scope="module")
def sample() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(60) % 3
    means = 2 * torch.randn(3, 5, generator=generator, dtype=torch.float64)
    return means[target] + torch.randn(60, 5, generator=generator, dtype=torch.float64), target


def test_logistic_regression_decides_as_scikit_learn_at_the_penalty_that_was_chosen(
    sample: tuple[Tensor, Tensor],
) -> None:
    features, target = sample
    head = solve_logistic(features, target, 3)
    centred = features - features.mean(0)
    strength = head.chosen["l2"] * float(centred.square().mean()) * len(features)
    other = LogisticRegression(C=1 / strength, max_iter=10_000, tol=1e-8).fit(features.numpy(), target.numpy())
    logits = (features @ head.weight.T + head.bias) * head.temperature
    assert torch.allclose(logits.softmax(1), torch.tensor(other.predict_proba(features.numpy())), atol=5e-3)


def test_nearest_mean_is_scikit_learns_and_leaves_out_exactly(sample: tuple[Tensor, Tensor]) -> None:
    features, target = sample
    head = solve_nearest_mean(features, target, 3)
    other = NearestCentroid().fit(features.numpy(), target.numpy())
    assert (features @ head.weight.T + head.bias).argmax(1).tolist() == other.predict(features.numpy()).tolist()
    for row in (0, 1, 7):
        rest = torch.arange(60) != row
        without = solve_nearest_mean(features[rest], target[rest], 3)
        expected = (features[row] @ without.weight.T + without.bias) * without.temperature / head.temperature
        assert torch.allclose(head.logits[row].log_softmax(0), expected.log_softmax(0))


def test_nearest_mean_of_statistics_is_that_of_the_features(sample: tuple[Tensor, Tensor]) -> None:
    features, target = sample
    statistics: ClassStatistics = class_statistics(features, target, 3)
    whole, told = (
        solve_nearest_mean(features, target, 3),
        solve_nearest_mean(statistics, target, 3, samples=features),
    )
    assert torch.allclose(whole.weight, told.weight)


def test_a_class_with_one_sample_is_left_out_and_one_with_none_is_never_named() -> None:
    features, target = torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([0, 0, 1])
    head = solve_nearest_mean(features, target, 3)
    assert head.logits[2, :2].isnan().all()
    assert (features.double() @ head.weight.T + head.bias).argmax(1).max() < 2


def test_neighbours_vote_without_themselves(sample: tuple[Tensor, Tensor]) -> None:
    features, target = sample
    unit = torch.nn.functional.normalize(features, dim=1)
    head = solve_neighbors(unit, target, 3)
    number = int(head.chosen["neighbors"])
    for row in range(60):  # some have their nearest neighbour in another class
        rest = torch.arange(60) != row
        alone = votes_of_neighbors(unit[row : row + 1], unit[rest], target[rest], 3, number)
        assert torch.allclose(alone[0].double() / head.temperature, head.logits[row])


def test_priors_name_the_most_frequent_class() -> None:
    head = solve_priors(torch.zeros(5, 2), torch.tensor([2, 2, 2, 0, 0]), 4)
    assert head.bias.argmax() == 2
    assert head.accuracy == pytest.approx(0.6)


def test_what_has_to_see_every_image_says_so_where_they_are_too_many(sample: tuple[Tensor, Tensor]) -> None:
    features, target = sample
    statistics = class_statistics(features, target, 3)
    with pytest.raises(ValueError, match="too many to be kept"):
        solve_logistic(statistics, target, 3, samples=features)


def test_a_class_of_one_sample_does_not_choose_the_penalty(sample: tuple[Tensor, Tensor]) -> None:
    features, target = sample
    generator = torch.Generator().manual_seed(1)
    lonely = torch.randn(1, 5, generator=generator, dtype=torch.float64)
    more, labels = torch.cat([features, lonely]), torch.cat([target, torch.tensor([3])])
    plain, beside = solve_logistic(features, target, 3), solve_logistic(more, labels, 4)
    assert beside.logits[-1].isnan().all()
    assert beside.chosen["l2"] < 0.1  # with it in the sum, the strongest penalty would be best
    assert beside.accuracy == pytest.approx(plain.accuracy, abs=0.1)


def test_where_no_class_has_two_samples_the_penalty_is_said_to_be_a_guess() -> None:
    with pytest.warns(UserWarning, match="no class has two samples to choose a penalty by"):
        head = solve_logistic(torch.eye(3), torch.arange(3), 3)
    assert math.isnan(head.accuracy)
    with pytest.raises(ValueError, match="two samples at least"):
        solve_logistic(torch.eye(1), torch.tensor([0]), 1)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_an_absent_class_is_never_named_however_large_features_are(scale: float, sample: tuple[Tensor, Tensor]) -> None:
    features, target = 30 + scale * sample[0], sample[1]
    head = solve_nearest_mean(features, target, 4)
    assert (features @ head.weight.T + head.bias).argmax(1).max() < 3
    assert head.accuracy == solve_nearest_mean(sample[0], target, 3).accuracy
