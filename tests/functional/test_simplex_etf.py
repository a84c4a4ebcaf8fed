"""NC2, NC3, NC4, the effective rank and the law of separation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import neural_collapse as reference
from sklearn.neighbors import NearestCentroid
from torch import Tensor

from nc_finetune.functional import (
    effective_rank,
    nc2_equiangle,
    nc2_equinorm,
    nc2_etf_distance,
    nc2_of_distance,
    nc3_etf_distance,
    nc3_of_distance,
    nc4,
    ncc_accuracy,
    nearest_class_center,
    separation_law,
)

Measure = Callable[[Tensor], Tensor]
CENTRED = (nc2_equinorm, nc2_equiangle, nc2_etf_distance, effective_rank)


def random_means(classes: int = 6, width: int = 9, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, width, generator=generator, dtype=torch.float64)


def simplex(classes: int = 6, width: int = 9) -> Tensor:
    rotation = torch.linalg.qr(random_means(width, width, seed=1)).Q
    return (torch.eye(classes, width, dtype=torch.float64) - torch.eye(classes, width).double().mean(dim=0)) @ rotation


@pytest.mark.parametrize("measure", [nc2_equinorm, nc2_equiangle, effective_rank])
def test_measures_of_means_equal_the_oracle(measure: Measure) -> None:
    means = random_means()
    expected = getattr(reference, measure.__name__)(means.numpy())
    assert measure(means).item() == pytest.approx(expected, rel=1e-10)


def test_frame_distances_equal_the_oracle() -> None:
    means, weight = random_means(), random_means(seed=2)
    centred = means - means.mean(dim=0)
    pairs = [
        (nc2_etf_distance(means), centred @ centred.T, True),
        (nc2_of_distance(means), means @ means.T, False),
        (nc3_etf_distance(weight, means), weight @ centred.T, True),
        (nc3_of_distance(weight, means), weight @ means.T, False),
    ]
    for value, product, is_simplex in pairs:
        assert value.item() == pytest.approx(reference.frame_distance(product.numpy(), is_simplex), rel=1e-10)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_perfect_simplex_is_zero(classes: int) -> None:
    means = 7 * simplex(classes, 12) + 3
    for measure in (nc2_equinorm, nc2_equiangle, nc2_etf_distance):
        assert measure(means).item() == pytest.approx(0, abs=1e-12)
    assert nc3_etf_distance(means - means.mean(dim=0), means).item() == pytest.approx(0, abs=1e-12)
    assert effective_rank(means).item() == pytest.approx(classes - 1, rel=1e-12)


def test_orthogonal_frame_is_zero_without_centring_alone() -> None:
    frame = 4 * torch.linalg.qr(random_means(9, 9)).Q[:6]
    assert nc2_of_distance(frame).item() == pytest.approx(0, abs=1e-12)
    assert nc3_of_distance(2 * frame, frame).item() == pytest.approx(0, abs=1e-12)
    assert nc2_of_distance(frame + 1).item() > 0.1


def test_means_in_fewer_dimensions_than_a_simplex_needs_are_no_simplex() -> None:
    assert nc2_etf_distance(random_means(6, 3)).item() > 0.1
    assert effective_rank(random_means(6, 3)).item() <= 3


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_scale_rotation_shift_and_names_do_not_matter(seed: int, scale: float, shift: float) -> None:
    means = random_means(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64, generator=generator)).Q
    moved = scale * (means[torch.randperm(6, generator=generator)] @ rotation + shift)
    for measure in CENTRED:
        assert measure(moved).item() == pytest.approx(measure(means).item(), rel=1e-7), measure.__name__


@pytest.mark.parametrize("measure", [nc2_equinorm, nc2_equiangle, nc2_etf_distance, nc2_of_distance, effective_rank])
def test_gradients_are_those_of_the_formulas(measure: Measure) -> None:
    assert torch.autograd.gradcheck(measure, random_means(4, 5).requires_grad_())


@pytest.mark.parametrize("measure", [nc2_equinorm, nc2_equiangle, nc2_etf_distance, nc2_of_distance, effective_rank])
@pytest.mark.parametrize("shape", [(1, 4), (3,), (2, 3, 4)])
def test_what_is_no_set_of_means_is_refused(measure: Measure, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"class means must have shape \(K, D\) with K of at least 2"):
        measure(torch.ones(shape))


def test_classifier_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the shape of the class means, \(K, D\) = \(6, 9\), got \(6, 8\)"):
        nc3_etf_distance(torch.ones(6, 8), random_means())


def test_nearest_class_centre_equals_scikit_learn_and_the_oracle() -> None:
    features, target = random_means(80, 5, seed=3), torch.arange(80) % 4
    features += target.unsqueeze(1)
    means = torch.stack([features[target == k].mean(dim=0) for k in range(4)])
    decided = nearest_class_center(features, means)
    theirs = NearestCentroid().fit(features.numpy(), target.numpy()).predict(features.numpy())
    assert np.array_equal(decided.numpy(), theirs)
    assert np.array_equal(decided.numpy(), reference.ncc_decisions(features.numpy(), means.numpy()))
    assert ncc_accuracy(features, target, means).item() == pytest.approx((theirs == target.numpy()).mean())


def test_nearest_class_centre_holds_far_from_the_origin() -> None:
    features, means = random_means(50, 5, seed=3), random_means(4, 5, seed=4)
    assert torch.equal(nearest_class_center(features + 1e8, means + 1e8), nearest_class_center(features, means))


def test_nc4_counts_the_disagreements() -> None:
    means = simplex(3, 4)
    features = means.repeat(2, 1)
    assert nc4(features, means, means).item() == 0
    assert nc4(features, means, means, torch.tensor([100.0, 0.0, 0.0])).item() == pytest.approx(2 / 3)


def test_separation_law_equals_a_straight_line_through_the_logarithms() -> None:
    values = torch.tensor([9.0, 5.0, 2.5, 0.7, 0.6])
    slope, intercept = np.polyfit(np.arange(5), np.log(values.numpy()), 1)
    law = separation_law(values)
    assert (law.slope.item(), law.intercept.item()) == pytest.approx((slope, intercept), rel=1e-6)
    assert law.r_squared.item() == pytest.approx(np.corrcoef(np.arange(5), np.log(values.numpy()))[0, 1] ** 2, rel=1e-5)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_separation_law_of_what_has_no_logarithm_is_nan(bad: float) -> None:
    assert separation_law(torch.tensor([1.0, bad, 2.0])).slope.isnan()


def test_separation_law_needs_two_layers() -> None:
    with pytest.raises(ValueError, match=r"at least two layers are needed, shape \(L,\), got \(1,\)"):
        separation_law(torch.ones(1))


def test_flat_separation_has_no_explained_variance() -> None:
    law = separation_law(torch.full((4,), 2.0))
    assert law.slope.item() == 0
    assert law.r_squared.isnan()


def minimise(loss: Callable[[], Tensor], *free: Tensor) -> None:
    optimizer = torch.optim.LBFGS(
        free, max_iter=300, tolerance_grad=1e-10, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Any:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_unconstrained_features_with_bias_collapse_to_a_simplex(loss: str) -> None:
    features, weight, bias, target = _unconstrained(loss, with_bias=True)
    from nc_finetune.functional import class_statistics, nc1

    means = class_statistics(features, target).means
    assert nc1(features, target).item() < 1e-6
    assert nc2_etf_distance(means).item() < 1e-3
    assert nc3_etf_distance(weight, means).item() < 1e-3
    assert nc4(features, means, weight, bias).item() == 0


def test_unconstrained_features_of_mse_without_bias_collapse_to_an_orthogonal_frame() -> None:
    features, weight, _, target = _unconstrained("mse", with_bias=False)
    from nc_finetune.functional import class_statistics, nc1

    means = class_statistics(features, target).means
    assert nc1(features, target).item() < 1e-6
    assert nc2_of_distance(means).item() < 1e-3
    assert nc3_of_distance(weight, means).item() < 1e-3


def _unconstrained(loss: str, with_bias: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Optimise free features, weight and bias with weight decay: Zhu et al. 2021, Tirer & Bruna 2022."""
    classes, width, each = 4, 6, 5
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(classes).repeat_interleave(each)
    features = torch.randn(classes * each, width, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(classes, width, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=with_bias)
    wanted = torch.nn.functional.one_hot(target).double()

    def objective() -> Tensor:
        logits = features @ weight.T + bias
        if loss == "mse":
            fit = 0.5 * (logits - wanted).square().sum(dim=1).mean()
        else:
            fit = torch.nn.functional.cross_entropy(logits, target)
        decay = features.square().sum() / len(target) + weight.square().sum() + bias.square().sum()
        return fit + 0.5 * 2e-2 * decay

    minimise(objective, features, weight, *([bias] if with_bias else []))
    return features.detach(), weight.detach(), bias.detach(), target
