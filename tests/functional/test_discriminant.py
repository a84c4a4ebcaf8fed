import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nc_finetune.functional import (
    LinearDiscriminant,
    _bases,
    _leave_one_out,
    class_statistics,
    empty_class_statistics,
    linear_discriminant,
    merge_class_statistics,
    temperature,
    update_class_statistics,
)
from nc_finetune.functional.discriminant import SHRINKAGES

STATISTICS = sys.modules["nc_finetune.functional.class_statistics"]  # the name is that of a function, too

# (N, D): more samples than features, and fewer (the Gram matrix).
SHAPES = [(60, 7), (30, 50), (21, 21)]


def make_samples(num_samples: int, num_features: int, num_classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features with spreads of different sizes around class means, and uneven counts, two a class at least."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(num_classes).repeat(2)
    rest = torch.multinomial(torch.arange(1.0, num_classes + 1), num_samples - len(classes), True, generator=generator)
    target = torch.cat([classes, rest])
    means = torch.randn(num_classes, num_features, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_samples, num_features, generator=generator, dtype=torch.float64)
    scales = torch.logspace(-1, 1, num_features, dtype=torch.float64)
    return 5 + means[target] + noise * scales, target


def brute_force(features: Tensor, target: Tensor, shrinkage: float, priors: str = "equal") -> Tensor:
    """Logits of every sample by a covariance that is written out, inverted, and computed without the sample."""
    z, y, rows = features.double().numpy(), target.numpy(), []
    for left_out in range(len(z)):
        others = np.arange(len(z)) != left_out
        kept, labels = z[others], y[others]
        means = np.stack([kept[labels == k].mean(0) for k in range(y.max() + 1)])
        deviations = kept - means[labels]
        covariance = deviations.T @ deviations / len(kept)
        shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / z.shape[1] * np.eye(z.shape[1])
        offsets = means - means.mean(0)
        solved = np.linalg.solve(shrunk, offsets.T).T
        logits = solved @ (z[left_out] - means.mean(0)) - (solved * offsets).sum(1) / 2
        rows.append(logits + (np.log(np.bincount(labels) / len(labels)) if priors == "counts" else 0))
    return torch.tensor(np.stack(rows))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shrinkage", [1e-3, 0.3, 1.0])
@pytest.mark.parametrize("priors", ["equal", "counts"])
def test_decision_values_are_those_of_scikit_learn(shape: tuple[int, int], shrinkage: float, priors: str) -> None:
    features, target = make_samples(*shape)
    prior = None if priors == "counts" else np.full(3, 1 / 3)
    other = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=prior)
    # Scikit-learn weighs the covariances of the classes by the priors; ours counts samples whatever the priors.
    if priors == "equal":
        target = torch.arange(3).repeat(shape[0] // 3)
        features = features[: len(target)]
    theirs = torch.tensor(other.fit(features.numpy(), target.numpy()).decision_function(features.numpy()))
    found = linear_discriminant(features, target, shrinkage, priors=priors)  # type: ignore[arg-type]
    ours = features @ found.weight.T + found.bias
    between = lambda logits: logits - logits.mean(1, keepdim=True)  # noqa: E731
    torch.testing.assert_close(between(ours), between(theirs), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shrinkage", [1e-4, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("priors", ["equal", "counts"])
def test_leave_one_out_is_brute_force(shape: tuple[int, int], shrinkage: float, priors: str) -> None:
    features, target = make_samples(*shape)
    found = linear_discriminant(features, target, shrinkage, priors=priors)  # type: ignore[arg-type]
    expected = brute_force(features, target, shrinkage, priors)
    torch.testing.assert_close(found.leave_one_out_logits, expected, rtol=1e-10, atol=1e-10)
    assert found.leave_one_out_accuracy == (expected.argmax(1) == target).double().mean()


@pytest.mark.parametrize("shrinkage", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_leave_one_out_is_exact_where_the_scatter_lacks_rank(dtype: torch.dtype, shrinkage: float) -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(40, 2, generator=generator) @ torch.randn(2, 10, generator=generator)
    dead = torch.randn(60, 12, generator=generator) * (torch.arange(12) % 3 > 0)
    for features in (flat.to(dtype), dead.to(dtype)):
        target = torch.arange(len(features)) % 4
        found = linear_discriminant(features, target, shrinkage)
        expected = brute_force(features, target, shrinkage)
        torch.testing.assert_close(found.leave_one_out_logits, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_whole_path_is_that_of_each_shrinkage(shape: tuple[int, int]) -> None:
    features, target = make_samples(*shape)
    found = linear_discriminant(features, target, criterion="accuracy")
    alone = {s: linear_discriminant(features, target, s) for s in SHRINKAGES}
    assert found.path == {s: one.leave_one_out_accuracy.item() for s, one in alone.items()}  # type: ignore[union-attr]
    best = max(found.path.values())
    assert found.shrinkage == max(s for s, accuracy in found.path.items() if accuracy == best)
    torch.testing.assert_close(found.weight, alone[found.shrinkage].weight)


@pytest.mark.parametrize("shrinkage", [1e-3, 0.5, 1.0])
def test_statistics_of_any_grouping_give_the_same(shrinkage: float) -> None:
    features, target = make_samples(60, 7)
    whole = linear_discriminant(features, target, shrinkage)
    parts = [class_statistics(features[rows], target[rows], 3) for rows in (slice(0, 25), slice(25, 60))]
    merged = linear_discriminant(merge_class_statistics(*parts), shrinkage=shrinkage)
    torch.testing.assert_close(merged.weight, whole.weight, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(merged.bias, whole.bias, rtol=1e-10, atol=1e-10)
    assert merged.leave_one_out_logits is None


def assert_same(first: LinearDiscriminant, second: LinearDiscriminant) -> None:
    """Compare everything but the leave-one-out of statistics alone."""
    torch.testing.assert_close(first[:2], second[:2], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(first[3:5], second[3:5], rtol=1e-10, atol=1e-10, equal_nan=True)
    assert first.shrinkage == second.shrinkage
    assert first.path == pytest.approx(second.path, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("priors", ["equal", "counts"])
def test_statistics_with_all_samples_give_the_same(shape: tuple[int, int], dtype: torch.dtype, priors: Any) -> None:
    features, target = make_samples(*shape)
    features = torch.cat([features, features[:1] + 9]).to(dtype)  # one is alone in its class
    target = torch.cat([target, torch.tensor([3])])
    whole = linear_discriminant(features, target, priors=priors)
    merged = merge_class_statistics(
        class_statistics(features[:10], target[:10], 4), class_statistics(features[10:], target[10:], 4)
    )
    assert_same(linear_discriminant(merged, samples=(features, target), priors=priors), whole)


def test_some_samples_beside_statistics_are_left_out_exactly() -> None:
    features, target = make_samples(60, 7)
    whole = linear_discriminant(features, target, 0.1)
    some = torch.tensor([50, 3, 17, 4])
    statistics, samples = class_statistics(features, target), (features[some], target[some].to(torch.uint8))
    found = linear_discriminant(statistics, shrinkage=0.1, samples=samples)
    assert whole.leave_one_out_logits is not None
    torch.testing.assert_close(found.leave_one_out_logits, whole.leave_one_out_logits[some], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.weight, whole.weight, rtol=1e-10, atol=1e-10)
    chosen = linear_discriminant(statistics, samples=samples, criterion="accuracy")
    alone = {s: linear_discriminant(statistics, shrinkage=s, samples=samples) for s in SHRINKAGES}
    assert chosen.path == {s: one.leave_one_out_accuracy.item() for s, one in alone.items()}  # type: ignore[union-attr]


class _Sizes(TorchDispatchMode):
    """Notes the most elements of a tensor that is not a view of the given one."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given, self.most = given.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else (found,):
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() != self.given:
                self.most = max(self.most, one.numel())
        return found


@pytest.mark.parametrize("shape", [(6000, 40), (40, 6000)])
def test_features_are_not_copied_and_pieces_change_nothing(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, target = make_samples(*shape)
    features = features.float()
    whole = linear_discriminant(features, target, [0.01, 0.5])
    monkeypatch.setattr(_bases, "_CHUNK_ELEMENTS", 2**12)
    monkeypatch.setattr(_bases, "_CACHED_ELEMENTS", 2**12)
    monkeypatch.setattr(_leave_one_out, "_PIECE_ELEMENTS", 2**10)
    monkeypatch.setattr(STATISTICS, "_CHUNK_ELEMENTS", 2**12)
    monkeypatch.setattr(STATISTICS, "_CACHED_ELEMENTS", 2**12)
    with _Sizes(features) as sizes:
        pieces = linear_discriminant(features, target, [0.01, 0.5])
    assert_same(pieces, whole)
    assert sizes.most < features.numel() / 10


def test_scatter_of_many_wide_samples_is_taken_though_a_pass_keeps_none(monkeypatch: pytest.MonkeyPatch) -> None:
    features, target = make_samples(60, 7)
    whole = linear_discriminant(features, target)
    monkeypatch.setattr(STATISTICS, "MAX_SCATTER_FEATURES", 6)
    assert_same(linear_discriminant(features, target), whole)


@pytest.mark.parametrize("shape", SHAPES)
def test_log_likelihood_after_one_temperature_chooses(shape: tuple[int, int]) -> None:
    features, target = make_samples(*shape)
    features, target = torch.cat([features, features[:1]]), torch.cat([target, torch.tensor([3])])
    found = linear_discriminant(features, target)
    for s, value in found.path.items():
        logits = linear_discriminant(features, target, s).leave_one_out_logits
        assert logits is not None
        expected = -F.cross_entropy(logits[:-1] / temperature(logits, target), target[:-1])
        assert value == pytest.approx(expected.item(), abs=1e-9)
    assert found.shrinkage == max(found.path, key=found.path.__getitem__)
    assert (
        found.leave_one_out_accuracy
        == linear_discriminant(features, target, criterion="accuracy").path[found.shrinkage]
    )


def test_order_and_dtype_change_nothing() -> None:
    features, target = make_samples(30, 50)
    features = features.float()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    first, second = linear_discriminant(features, target, 0.1), linear_discriminant(features[order], target[order], 0.1)
    torch.testing.assert_close(first.weight, second.weight, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        first.leave_one_out_logits[order],  # type: ignore[index]
        second.leave_one_out_logits,
        rtol=1e-10,
        atol=1e-10,
    )
    assert first.weight.dtype == torch.float64


def test_full_shrinkage_is_the_nearest_class_mean() -> None:
    features, target = make_samples(60, 7)
    found = linear_discriminant(features, target, 1.0)
    means = class_statistics(features, target).means
    nearest = (features[:, None] - means).square().sum(-1).argmin(1)
    assert (features @ found.weight.T + found.bias).argmax(1).equal(nearest)


@pytest.mark.parametrize("shape", [(15, 4), (12, 20)])
def test_weight_and_bias_are_differentiable(shape: tuple[int, int]) -> None:
    features, target = make_samples(*shape)
    features.requires_grad_()

    def solved(given: Tensor) -> tuple[Tensor, Tensor]:
        found = linear_discriminant(given, target, 0.4)
        return found.weight, found.bias

    assert torch.autograd.gradcheck(solved, (features,))


def test_a_single_sample_of_a_class_has_no_leave_one_out_and_the_others_have() -> None:
    features, target = make_samples(20, 6)
    features, target = torch.cat([features, features[:1] + 9]), torch.cat([target, torch.tensor([3])])
    found = linear_discriminant(features, target)
    assert found.leave_one_out_logits is not None
    assert found.leave_one_out_logits.isnan().all(1).nonzero().flatten().tolist() == [20]
    expected = brute_force_of_pairs(features, target, found.shrinkage)
    torch.testing.assert_close(found.leave_one_out_logits[:20], expected, rtol=1e-10, atol=1e-10)


def brute_force_of_pairs(features: Tensor, target: Tensor, shrinkage: float) -> Tensor:
    rows = []
    for left_out in range(20):
        others = torch.arange(len(target)) != left_out
        found = linear_discriminant(features[others], target[others], shrinkage)
        rows.append(found.weight @ features[left_out] + found.bias)
    return torch.stack(rows)


def test_what_has_no_discriminant_is_refused() -> None:
    features, target = make_samples(20, 6)
    with pytest.raises(ValueError, match="there is none of class 3"):
        linear_discriminant(features, target, num_classes=4)
    with pytest.raises(ValueError, match="coincide with the mean of their class"):
        linear_discriminant(features[target], target)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\], got 0"):
        linear_discriminant(features, target, 0)
    with pytest.raises(ValueError, match="labels must be integers from 0 on, got -3"):
        linear_discriminant(features, target - 3)
    with pytest.raises(ValueError, match="unknown priors 'count'"):
        linear_discriminant(features, target, priors="count")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be finite"):
        linear_discriminant(features / 0, target)
    with pytest.raises(ValueError, match="choose no shrinkage"):
        linear_discriminant(class_statistics(features, target))
    with pytest.raises(ValueError, match="need a target"):
        linear_discriminant(features)
    with pytest.raises(ValueError, match="unknown criterion 'loss'"):
        linear_discriminant(features, target, criterion="loss")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pool maps"):
        linear_discriminant(features[:, :, None], target)
    with pytest.raises(ValueError, match="coincide"):  # one sample a class leaves no spread, either
        linear_discriminant(features[:3], torch.arange(3))
    statistics = class_statistics(features[::2], torch.arange(10))
    with pytest.raises(ValueError, match="coincide"):
        linear_discriminant(statistics, samples=(features[::2], torch.arange(10)))


def test_two_samples_of_which_each_has_all_the_spread_choose_no_shrinkage() -> None:
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
    with pytest.raises(ValueError, match="nothing is left to choose a shrinkage by"):
        linear_discriminant(features, torch.tensor([0, 0, 1]))
    assert linear_discriminant(features, torch.tensor([0, 0, 1]), 0.5).weight.isfinite().all()


def test_statistics_and_samples_that_do_not_fit_are_refused() -> None:
    features, target = make_samples(20, 6)
    statistics = class_statistics(features, target)
    with pytest.raises(ValueError, match="hold the labels already"):
        linear_discriminant(statistics, target)
    with pytest.raises(ValueError, match="no samples beside them"):
        linear_discriminant(features, target, samples=(features, target))
    with pytest.raises(ValueError, match=r"shape \(N, 6\) and target \(N,\), got \(20, 5\)"):
        linear_discriminant(statistics, samples=(features[:, :5], target))
    with pytest.raises(ValueError, match=r"labels must be integers in \[0, 3\)"):
        linear_discriminant(statistics, samples=(features, target + 1))
    with pytest.raises(ValueError, match="at least one sample is needed"):
        linear_discriminant(statistics, samples=(features[:0], target[:0]))
    with pytest.raises(ValueError, match=r"must be finite, got nan or infinity$"):
        linear_discriminant(statistics, samples=(features / 0, target))
    broken = class_statistics(features.where(target.unsqueeze(1) != 1, torch.nan), target)
    with pytest.raises(ValueError, match="must be finite, got nan or infinity in class 1"):
        linear_discriminant(broken, shrinkage=0.1)
    narrow = update_class_statistics(empty_class_statistics(3, 6, scatter=False), features, target)
    with pytest.raises(ValueError, match="width 6 without a scatter"):
        linear_discriminant(narrow, samples=(features, target))
