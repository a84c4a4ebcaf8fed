import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nc_finetune.functional import (
    ClassStatistics,
    empty_class_statistics,
    merge_class_statistics,
    update_class_statistics,
    within_class_scatter,
)


def sample(classes: int = 4, features: int = 6, number: int = 50, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.cat([torch.arange(classes), torch.randint(classes, (number - classes,), generator=generator)])
    centres = 10 * torch.randn(classes, features, generator=generator, dtype=torch.float64)
    return centres[target] + torch.randn(number, features, generator=generator, dtype=torch.float64), target


def statistics_of(features: Tensor, target: Tensor, classes: int, batch: int | None = None) -> ClassStatistics:
    sums = empty_class_statistics(classes, features.shape[1])
    for rows in torch.arange(len(target)).split(batch or max(len(target), 1)):
        sums = update_class_statistics(sums, features[rows], target[rows])
    return sums


def assert_equal(first: ClassStatistics, second: ClassStatistics) -> None:
    complete = [[*sums[:3], within_class_scatter(sums)] for sums in (first, second)]
    for one, other in zip(*complete, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_sums_are_those_of_the_formulas() -> None:
    features, target = sample()
    sums = statistics_of(features, target, 4)
    means = torch.stack([features[target == k].mean(dim=0) for k in range(4)])
    deviations = features - means[target]
    spreads = torch.zeros(4, dtype=torch.float64).index_add(0, target, deviations.square().sum(dim=1))
    assert_equal(sums, ClassStatistics(target.bincount().double(), means, spreads, deviations.T @ deviations))


@pytest.mark.parametrize("batch", [1, 7, 49])
def test_any_grouping_into_batches_gives_the_same_sums(batch: int) -> None:
    features, target = sample()
    assert_equal(statistics_of(features, target, 4, batch), statistics_of(features, target, 4))


def test_order_of_samples_does_not_matter() -> None:
    features, target = sample()
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(1))
    assert_equal(statistics_of(features[order], target[order], 4, 7), statistics_of(features, target, 4, 7))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 49), max_size=3), st.integers(0, 5))
def test_merged_shards_are_the_whole_in_any_association(cuts: list[int], seed: int) -> None:
    features, target = sample(seed=seed)
    bounds = [0, *sorted(cuts), 50]
    shards = [statistics_of(features[a:b], target[a:b], 4) for a, b in itertools.pairwise(bounds)]
    from_left, from_right = shards[0], shards[-1]
    for shard in shards[1:]:
        from_left = merge_class_statistics(from_left, shard)
    for shard in reversed(shards[:-1]):
        from_right = merge_class_statistics(shard, from_right)
    assert_equal(from_left, statistics_of(features, target, 4))
    assert_equal(from_right, from_left)


def test_digits_survive_when_means_are_far_larger_than_the_spread() -> None:
    generator = np.random.default_rng(0)
    spread = generator.standard_normal((200, 5))
    features = torch.from_numpy(1e7 + spread)
    sums = statistics_of(features, torch.zeros(200, dtype=torch.long), 1, 16)
    exact = features - features.mean(dim=0)
    torch.testing.assert_close(within_class_scatter(sums), exact.T @ exact, rtol=1e-6, atol=0)


def test_update_leaves_its_argument_as_it_was() -> None:
    features, target = sample()
    sums = empty_class_statistics(4, 6)
    update_class_statistics(sums, features, target)
    assert all(value is not None and value.count_nonzero() == 0 for value in sums)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_floating_dtype_is_accumulated_in_float64(dtype: torch.dtype) -> None:
    features, target = sample()
    low = features.to(dtype)
    assert_equal(statistics_of(low, target, 4), statistics_of(low.double(), target, 4))
