"""Estimates of accuracy: honest after a choice, and with intervals that hold."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from nc_finetune.tuning.estimate import estimate_accuracy, wilson_interval


@pytest.mark.parametrize(("right", "number"), [(0, 7), (3, 7), (7, 7), (180, 200)])
def test_interval_is_that_of_scipy(right: int, number: int) -> None:
    found = binomtest(right, number).proportion_ci(method="wilson")
    assert wilson_interval(right / number, number) == pytest.approx((found.low, found.high), abs=1e-12)


def test_of_one_candidate_nothing_is_taken_off() -> None:
    found = estimate_accuracy([torch.arange(50) % 5 > 0])
    assert found.accuracy == pytest.approx(0.8)
    assert found.optimism == 0
    assert found.images == 50


def test_best_of_many_that_guess_is_no_better_than_guessing() -> None:
    generator = torch.Generator().manual_seed(0)
    guesses = [torch.rand(100, generator=generator) < 0.5 for _ in range(40)]
    found = estimate_accuracy(guesses)
    best = max(float(right.double().mean()) for right in guesses)
    assert best > 0.6
    assert abs(found.accuracy - 0.5) < 0.05
    assert found.accuracy + found.optimism == pytest.approx(best)


def test_folds_tell_less_than_images_of_nobody() -> None:
    right = torch.arange(200) % 10 > 0
    alone, folds = estimate_accuracy([right]), estimate_accuracy([right], folds=5)
    assert (folds.low, folds.high) == wilson_interval(0.9, 200 / (1 + 5 / 4))
    assert folds.low < alone.low < alone.high < folds.high
    assert folds.less(0.1).accuracy == pytest.approx(0.8)
    assert (folds.less(0.1).low, folds.less(0.1).high) == pytest.approx(wilson_interval(0.8, 200 / 2.25))


def test_a_clear_winner_keeps_its_accuracy() -> None:
    good, bad = torch.arange(300) % 10 > 0, torch.arange(300) % 2 > 0
    assert estimate_accuracy([bad, good]).accuracy == pytest.approx(0.9, abs=0.002)


def test_same_seed_same_estimate() -> None:
    sets = [torch.rand(60, generator=torch.Generator().manual_seed(seed)) < 0.7 for seed in range(5)]
    assert estimate_accuracy(sets) == estimate_accuracy(sets)


@pytest.mark.parametrize("correct", [[], [torch.zeros(0, dtype=torch.bool)]])
def test_nothing_has_no_accuracy(correct: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="needs candidates and images"):
        estimate_accuracy(correct)
