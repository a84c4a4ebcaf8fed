import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nc_finetune import NeuralCollapse
from nc_finetune.functional import nc1

K, D = 4, 6


def sample(number: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.cat([torch.arange(K), torch.randint(K, (number - K,), generator=generator)])
    return torch.randn(number, D, generator=generator) + 3 * torch.eye(K, D)[target], target


def filled(number: int = 60, **options: Any) -> NeuralCollapse:
    metric = NeuralCollapse(K, D, **options)
    for rows in torch.arange(number).split(7):
        features, target = sample(number)
        metric.update(features[rows], target[rows])
    return metric


def assert_same(metric: NeuralCollapse, expected: Tensor) -> None:
    torch.testing.assert_close(metric.compute()["nc1"], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("normalize", ["none", "classes"])
@pytest.mark.parametrize("between", ["classes", "samples"])
def test_batches_accumulate_to_the_function_of_everything(normalize: Any, between: Any) -> None:
    expected = nc1(*sample(), normalize=normalize, between=between)
    assert_same(filled(normalize=normalize, between=between), expected)


def test_forward_returns_the_batch_and_keeps_the_whole() -> None:
    metric = NeuralCollapse(K, D)
    first, second = sample(40, seed=1), sample(30, seed=2)
    metric(*first)
    torch.testing.assert_close(metric(*second)["nc1"], nc1(*second))
    assert_same(metric, nc1(torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])))


def test_reset_forgets() -> None:
    metric = filled()
    metric.reset()
    features, target = sample(20, seed=5)
    metric.update(features, target)
    assert_same(metric, nc1(features, target))


def test_pickle_and_clone_keep_the_state() -> None:
    metric = filled()
    expected = metric.compute()["nc1"]
    assert_same(pickle.loads(pickle.dumps(metric)), expected)  # noqa: S301
    assert_same(metric.clone(), expected)


def test_merge_state_is_the_union() -> None:
    first, second = NeuralCollapse(K, D), NeuralCollapse(K, D)
    features, target = sample()
    first.update(features[:11], target[:11])
    second.update(features[11:], target[11:])
    first.merge_state(second)
    assert_same(first, nc1(features, target))


def test_gathered_ranks_are_merged() -> None:
    features, target = sample()
    ranks = [NeuralCollapse(K, D) for _ in range(3)]
    ranks[0].update(features[:50], target[:50])
    ranks[1].update(features[50:], target[50:])  # the third rank saw nothing
    states = {name: [getattr(rank, name) for rank in ranks] for name in ("counts", "means", "scatter")}

    def gather(state: Tensor, group: Any = None) -> list[Tensor]:
        return next(values for values in states.values() if values[0] is state)

    ranks[0].dist_sync_fn = gather
    ranks[0].distributed_available_fn = lambda: True
    assert_same(ranks[0], nc1(features, target))


def test_half_precision_modules_keep_a_float64_state() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.metric = filled()

    assert Holder().half().metric.scatter.dtype == torch.float64  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"num_features": 0}, "num_features at least 1"),
        ({"normalize": "class"}, "did you mean 'classes'"),
        ({"between": "sample"}, "did you mean 'samples'"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeuralCollapse(**{"num_classes": K, "num_features": D, **options})


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(N, 6\).*got \(2, 5\)"):
        NeuralCollapse(K, D).update(torch.zeros(2, 5), torch.zeros(2, dtype=torch.long))
