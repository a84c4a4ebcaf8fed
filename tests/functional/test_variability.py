import warnings

import numpy as np
import pytest
import torch
from reference import neural_collapse as reference
from sklearn.metrics import calinski_harabasz_score
from torch import Tensor

from nc_finetune.functional import empty_class_statistics, nc1, nc1_from_statistics, update_class_statistics


def sample(classes: int = 5, width: int = 8, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.cat([torch.arange(classes).repeat(2), torch.randint(classes, (60,), generator=generator)])
    centres = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(target), width, generator=generator, dtype=torch.float64)
    return centres[target] + spread * noise, target


@pytest.mark.parametrize("between", ["classes", "samples"])
@pytest.mark.parametrize(("classes", "width"), [(5, 8), (2, 1), (12, 4)])
def test_equals_the_oracle(classes: int, width: int, between: str) -> None:
    features, target = sample(classes, width)
    expected = reference.nc1(features.numpy(), target.numpy(), classes, between)
    assert nc1(features, target, between=between).item() == pytest.approx(expected, rel=1e-9)  # type: ignore[arg-type]


def test_for_one_feature_it_is_the_inverse_of_calinski_harabasz() -> None:
    features, target = sample(5, 1)
    total, classes = len(target), 5
    expected = (total - classes) / ((classes - 1) * calinski_harabasz_score(features.numpy(), target.numpy()))
    assert nc1(features, target, between="samples").item() == pytest.approx(expected, rel=1e-9)


def test_per_class_normalisation_divides_by_k() -> None:
    features, target = sample()
    ratio = nc1(features, target) / nc1(features, target, normalize="classes")
    assert ratio.item() == pytest.approx(5)


def test_perfect_simplex_is_zero() -> None:
    simplex = torch.eye(6, dtype=torch.float64) - 1 / 6
    assert nc1(simplex.repeat(4, 1), torch.arange(6).repeat(4)).item() == pytest.approx(0, abs=1e-25)


def test_scale_rotation_and_shift_do_not_matter() -> None:
    features, target = sample()
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q
    moved = 7 * features @ rotation + 3
    assert nc1(moved, target).item() == pytest.approx(nc1(features, target).item(), rel=1e-9)


def test_names_of_the_classes_do_not_matter() -> None:
    features, target = sample()
    renamed = torch.tensor([3, 0, 4, 1, 2])[target]
    assert nc1(features, renamed).item() == pytest.approx(nc1(features, target).item(), rel=1e-12)


@pytest.mark.parametrize("spread", [1e1, 1.0, 1e-3, 1e-6])
def test_relative_accuracy_holds_down_to_collapse(spread: float) -> None:
    features, target = sample(spread=spread)
    shifted = (features + 100).float()
    expected = reference.nc1(shifted.double().numpy(), target.numpy(), 5)
    assert nc1(shifted, target).item() == pytest.approx(expected, rel=1e-7)


def test_gradient_is_that_of_the_formula() -> None:
    features, target = sample(3, 4)
    few = torch.arange(12)
    assert torch.autograd.gradcheck(lambda h: nc1(h, target[few]), features[few].clone().requires_grad_())


def test_gradient_is_finite_at_a_perfect_simplex() -> None:
    simplex = (torch.eye(4, dtype=torch.float64) - 1 / 4).repeat(3, 1).requires_grad_()
    nc1(simplex, torch.arange(4).repeat(3)).backward()  # type: ignore[no-untyped-call]
    assert simplex.grad is not None
    assert simplex.grad.isfinite().all()


@pytest.mark.parametrize(
    ("target", "classes", "reason"),
    [([0, 0], 1, "two classes"), ([0, 2], 3, "no samples of class 1"), ([0, 1], 2, "coincide")],
)
def test_undefined_is_nan_with_a_reason(target: list[int], classes: int, reason: str) -> None:
    with pytest.warns(UserWarning, match=reason):
        value = nc1(torch.full((2, 3), 0.1), torch.tensor(target), classes)
    assert value.isnan()


def test_rounding_of_equal_means_does_not_pass_for_a_difference() -> None:
    features = torch.full((3000, 4), 0.1, dtype=torch.float64)
    target = torch.arange(3000) % 7
    sums = empty_class_statistics(7, 4)
    for rows in torch.arange(3000).split(11):
        sums = update_class_statistics(sums, features[rows], target[rows])
    with pytest.warns(UserWarning, match="coincide"):
        assert nc1_from_statistics(sums).isnan()


def test_features_that_are_not_finite_are_nan_with_a_reason() -> None:
    features, target = sample()
    features[3, 2] = float("inf")
    with pytest.warns(UserWarning, match="not finite"):
        assert nc1(features, target).isnan()


def test_defined_values_come_without_a_warning() -> None:
    features, target = sample()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nc1(features, target)


@pytest.mark.parametrize(
    ("features", "target", "classes", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.long), None, r"shape \(N, D\)"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), None, r"target \(N,\)"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), None, "at least one sample"),
        (torch.zeros(2, 3), torch.tensor([0, 5]), 3, r"labels must lie in \[0, 3\), got 0 to 5"),
    ],
)
def test_bad_input_is_named(features: Tensor, target: Tensor, classes: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nc1(features, target, classes)


def test_oracle_itself_on_paper() -> None:
    features = np.array([[2.0], [4.0], [-2.0], [-4.0]])
    assert reference.nc1(features, np.array([0, 0, 1, 1]), 2) == pytest.approx(1 / 9)
