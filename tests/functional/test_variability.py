import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import neural_collapse as reference
from sklearn.metrics import calinski_harabasz_score
from torch import Tensor

from nc_finetune.functional import cdnv, class_statistics, h_score, nc1, trace_ratio, vci
from nc_finetune.functional import class_statistics as statistics_module
from nc_finetune.functional.between_class import undefined_reason

Measure = Callable[..., Tensor]
MakeSample = Callable[..., tuple[Tensor, Tensor]]
ALL = (nc1, trace_ratio, cdnv, h_score, vci)
SHAPES = [(5, 8), (2, 1), (12, 4)]


@pytest.mark.parametrize("measure", ALL)
@pytest.mark.parametrize(("classes", "width"), SHAPES)
def test_equals_the_oracle(make_sample: MakeSample, measure: Measure, classes: int, width: int) -> None:
    features, target = make_sample(classes, width)
    expected = getattr(reference, measure.__name__)(features.numpy(), target.numpy(), classes)
    assert measure(features, target).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("measure", [nc1, trace_ratio])
@pytest.mark.parametrize(("classes", "width"), SHAPES)
def test_weights_of_the_samples_equal_the_oracle(
    make_sample: MakeSample, measure: Measure, classes: int, width: int
) -> None:
    features, target = make_sample(classes, width)
    expected = getattr(reference, measure.__name__)(features.numpy(), target.numpy(), classes, "samples")
    assert measure(features, target, between="samples").item() == pytest.approx(expected, rel=1e-9)


def test_trace_ratio_is_the_inverse_of_calinski_harabasz(make_sample: MakeSample) -> None:
    features, target = make_sample()
    total, classes = len(target), 5
    expected = (total - classes) / ((classes - 1) * calinski_harabasz_score(features.numpy(), target.numpy()))
    assert trace_ratio(features, target, between="samples").item() == pytest.approx(expected, rel=1e-9)


def test_nc1_of_one_feature_is_the_trace_ratio(make_sample: MakeSample) -> None:
    features, target = make_sample(5, 1)
    assert nc1(features, target).item() == pytest.approx(trace_ratio(features, target).item(), rel=1e-9)


def test_normalisation_by_classes_divides_by_k(make_sample: MakeSample) -> None:
    features, target = make_sample()
    assert (nc1(features, target) / nc1(features, target, normalize="classes")).item() == pytest.approx(5)


@pytest.mark.parametrize("measure", [nc1, trace_ratio, cdnv, vci])
def test_perfect_simplex_is_zero(measure: Measure) -> None:
    simplex = torch.eye(6, dtype=torch.float64) - 1 / 6
    assert measure(simplex.repeat(4, 1), torch.arange(6).repeat(4)).item() == pytest.approx(0, abs=1e-12)


def test_h_score_of_a_perfect_simplex_is_its_maximum() -> None:
    simplex = torch.eye(6, dtype=torch.float64) - 1 / 6
    assert h_score(simplex.repeat(4, 1), torch.arange(6).repeat(4)).item() == pytest.approx(5, rel=1e-12)


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4, 1e-6])
def test_h_score_never_exceeds_its_maximum_with_fewer_samples_than_features(
    make_sample: MakeSample, spread: float
) -> None:
    features, target = make_sample(4, 200, spread=spread, extra=0)
    assert h_score(features, target).item() <= 3 + 1e-9
    assert -1e-9 <= vci(features, target).item() <= 1


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_scale_rotation_shift_order_and_names_do_not_matter(
    make_sample: MakeSample, seed: int, scale: float, shift: float
) -> None:
    features, target = make_sample(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=generator)).Q
    order = torch.randperm(len(target), generator=generator)
    renamed = torch.randperm(5, generator=generator)[target]
    for measure in ALL:
        moved = measure(scale * (features @ rotation + shift)[order], renamed[order])
        assert moved.item() == pytest.approx(measure(features, target).item(), rel=1e-7), measure.__name__


def test_vci_does_not_change_under_any_invertible_linear_map(make_sample: MakeSample) -> None:
    features, target = make_sample()
    skew = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    assert vci(features @ skew, target).item() == pytest.approx(vci(features, target).item(), rel=1e-8)
    assert nc1(features @ skew, target).item() != pytest.approx(nc1(features, target).item(), rel=1e-2)


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-5])
def test_vci_keeps_its_digits_down_to_collapse(make_sample: MakeSample, spread: float) -> None:
    features, target = make_sample(5, 1, spread=spread)
    ratio = reference.nc1(features.numpy(), target.numpy(), 5, "samples")
    assert vci(features, target).item() == pytest.approx(ratio / (1 + ratio), rel=1e-9, abs=0)


def test_cdnv_is_infinite_where_two_of_three_class_means_coincide() -> None:
    features = torch.tensor([[1.0], [-1.0], [2.0], [-2.0], [5.0], [6.0]])
    assert cdnv(features, torch.tensor([0, 0, 1, 1, 2, 2])).isinf()


REGIMES: dict[str, dict[str, Any]] = {
    "NC1 about 1e2": {"spread": 10.0},
    "NC1 about 1": {"spread": 1.0},
    "NC1 about 1e-7": {"spread": 1e-3},
    "means 1e5 times the spread": {"spread": 1e-5},
    "K > D": {"classes": 40, "width": 6, "spread": 0.1},
    "D > N": {"classes": 4, "width": 300, "extra": 0},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("regime", REGIMES)
def test_relative_error_stays_below_1e_7(make_sample: MakeSample, regime: str, dtype: torch.dtype) -> None:
    features, target = make_sample(**REGIMES[regime])
    shifted = (features + 10).to(dtype)
    expected = reference.nc1(shifted.double().numpy(), target.numpy(), int(target.max()) + 1)
    assert nc1(shifted, target).item() == pytest.approx(expected, rel=1e-7, abs=0)


def test_class_means_over_four_decades_and_counts_from_1_to_1000_keep_their_digits() -> None:
    generator = np.random.default_rng(0)
    directions, _ = np.linalg.qr(generator.standard_normal((32, 6)))
    means = generator.standard_normal((6, 6)) * np.logspace(0, -4, 6) @ directions.T
    target = np.repeat(np.arange(6), [1, 4, 15, 60, 250, 1000])
    features = (means[target] + 1e-6 * generator.standard_normal((len(target), 32))).astype(np.float32)
    expected = reference.nc1(features.astype(np.float64), target, 6)
    assert nc1(torch.from_numpy(features), torch.from_numpy(target)).item() == pytest.approx(expected, rel=1e-7)


def test_wide_features_are_measured_without_a_scatter(make_sample: MakeSample, monkeypatch: Any) -> None:
    features, target = make_sample(5, 50)
    expected = nc1(features, target).item()
    monkeypatch.setitem(class_statistics.__globals__, "MAX_SCATTER_FEATURES", 10)
    assert class_statistics(features, target).scatter is None
    assert nc1(features, target).item() == pytest.approx(expected, rel=1e-10)
    with pytest.raises(ValueError, match=r"width 50 have no scatter: it is kept up to 10"):
        h_score(features, target)


@pytest.mark.parametrize("measure", ALL)
def test_gradient_is_that_of_the_formula(make_sample: MakeSample, measure: Measure) -> None:
    features, target = make_sample(3, 4, extra=3)
    assert torch.autograd.gradcheck(lambda h: measure(h, target), features.requires_grad_())


@pytest.mark.parametrize("measure", [nc1, trace_ratio, cdnv])
def test_gradient_is_finite_at_a_perfect_simplex(measure: Measure) -> None:
    simplex = (torch.eye(4, dtype=torch.float64) - 1 / 4).repeat(3, 1).requires_grad_()
    measure(simplex, torch.arange(4).repeat(3)).backward()
    assert simplex.grad is not None
    assert simplex.grad.isfinite().all()


def test_descending_nc1_collapses_the_features(make_sample: MakeSample) -> None:
    features, target = make_sample(3, 4)
    free = features.clone().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss = nc1(free, target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert nc1(free.detach(), target) < 0.05 * nc1(features, target)


@pytest.mark.parametrize("measure", ALL)
@pytest.mark.parametrize(
    ("target", "classes", "reason"),
    [([0, 0], 1, "two classes"), ([0, 2], 3, "no samples of class 1"), ([0, 1], 2, "coincide")],
)
def test_undefined_is_nan_with_a_reason(measure: Measure, target: list[int], classes: int, reason: str) -> None:
    with pytest.warns(UserWarning, match=reason):
        value = measure(torch.full((2, 3), 0.1), torch.tensor(target), classes)
    assert value.isnan()


@pytest.mark.parametrize("measure", [nc1, vci, h_score])
def test_rounding_of_single_precision_is_no_direction(measure: Measure) -> None:
    """A convolution of grey images on black sees their ink alone: its eight means are one direction, and rounding."""
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(200) % 10
    images = torch.rand(200, 1, 12, 12, generator=generator, dtype=torch.float64) * (1 + target.view(-1, 1, 1, 1) / 10)
    kernels = torch.randn(8, 1, 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(8, generator=generator, dtype=torch.float64)

    def features(dtype: torch.dtype) -> Tensor:
        padded = torch.nn.functional.pad(images.to(dtype), (2, 2, 2, 2))
        return torch.nn.functional.conv2d(padded, kernels.to(dtype), bias.to(dtype)).mean((2, 3))

    expected = measure(features(torch.float64), target)
    assert measure(features(torch.float32), target).item() == pytest.approx(expected.item(), rel=1e-5)


def test_rounding_of_equal_means_does_not_pass_for_a_difference() -> None:
    features = torch.full((3000, 4), 0.1, dtype=torch.float64)
    sums = statistics_module(features[:7], torch.arange(7), 7)
    from nc_finetune.functional import update_class_statistics

    for rows in torch.arange(7, 3000).split(11):
        sums = update_class_statistics(sums, features[rows], rows % 7)
    assert undefined_reason(sums) == "all class means coincide, up to the rounding of single precision (Sigma_B = 0)"


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_features_that_are_not_finite_are_nan_with_a_reason(make_sample: MakeSample, bad: float) -> None:
    features, target = make_sample()
    features[3, 2] = bad
    with pytest.warns(UserWarning, match="not finite"):
        assert nc1(features, target).isnan()


def test_defined_values_come_without_a_warning(make_sample: MakeSample) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for measure in ALL:
            measure(*make_sample())


@pytest.mark.parametrize(
    ("features", "target", "classes", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.long), None, r"shape \(N, D\)"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), None, r"target \(N,\)"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), None, "at least one sample"),
        (torch.zeros(2, 3), torch.tensor([0, 5]), 3, r"labels must lie in \[0, 3\), got 0 to 5"),
        (torch.zeros(2, 3), torch.tensor([-1, 1]), 3, r"labels must lie in \[0, 3\), got -1 to 1"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), None, "target integers, got torch.float32, torch.float32"),
        (torch.zeros(2, 3, dtype=torch.long), torch.tensor([0, 1]), None, "features must be floating point"),
    ],
)
def test_bad_input_is_named(features: Tensor, target: Tensor, classes: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nc1(features, target, classes)


def test_oracle_itself_on_paper() -> None:
    features = np.array([[2.0], [4.0], [-2.0], [-4.0]])
    assert reference.nc1(features, np.array([0, 0, 1, 1]), 2) == pytest.approx(1 / 9)
