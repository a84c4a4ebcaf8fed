"""What has no value is nan with one warning that says why: every function, every way to have none."""

import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from nc_finetune import functional as F
from nc_finetune.functional.class_statistics import update_class_statistics_
from nc_finetune.functional.logistic_regression import logistic_path
from nc_finetune.functional.multilabel import MultilabelCollapse
from nc_finetune.functional.nearest_class_center import classifier_decisions

# A function of this name hides the module.
STATISTICS = importlib.import_module("nc_finetune.functional.class_statistics")
K, D = 4, 6
Measure = Callable[..., Any]
OF_FEATURES: list[Measure] = [F.nc1, F.trace_ratio, F.cdnv, F.h_score, F.vci]
OF_MEANS: list[Measure] = [F.nc2_equinorm, F.nc2_equiangle, F.nc2_etf_distance, F.nc2_of_distance, F.effective_rank]
OF_CLASSIFIER: list[Measure] = [F.nc3_etf_distance, F.nc3_of_distance]
BAD = [math.nan, math.inf, -math.inf]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32]


def sample(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(40) % K
    centres = 3 * torch.randn(K, D, generator=generator)
    return centres[target] + torch.randn(40, D, generator=generator), target


def means_of(features: Tensor, target: Tensor) -> Tensor:
    return F.class_statistics(features, target, K).means


def with_bad(values: Tensor, bad: float) -> Tensor:
    broken = values.clone()
    broken.view(-1)[7] = bad
    return broken


def undefined(measure: Measure, *arguments: Any) -> str:
    """Return why a measure is nan, which one warning must have said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = measure(*arguments)
    assert all(part.isnan() for part in (value if isinstance(value, tuple) else (value,)))
    (warning,) = caught
    assert "undefined and reported as nan" in str(warning.message)
    return str(warning.message)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A measure that has a value says nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("measure", OF_FEATURES)
def test_features_that_are_not_finite(measure: Measure, bad: float) -> None:
    features, target = sample()
    assert "not finite" in undefined(measure, with_bad(features, bad), target)


@pytest.mark.parametrize("measure", OF_FEATURES)
@pytest.mark.parametrize(
    ("features", "target", "classes", "why"),
    [
        (sample()[0], torch.zeros(40, dtype=torch.long), 1, "at least two classes"),
        (sample()[0], torch.zeros(40, dtype=torch.long), None, "at least two classes"),
        (*sample(), K + 2, "no samples of class 4, 5"),
        (torch.ones(40, D), sample()[1], K, "coincide"),
        (torch.zeros(40, D), sample()[1], K, "coincide"),
        (torch.full((40, D), 1e8), sample()[1], K, "coincide"),
    ],
)
def test_data_without_classes_apart(
    measure: Measure, features: Tensor, target: Tensor, classes: int | None, why: str
) -> None:
    assert why in undefined(measure, features, target, classes)


def test_two_classes_in_one_point() -> None:
    features = torch.tensor([[0.0], [0.0], [0.0], [0.0], [1.0], [2.0]])
    assert "one mean and no spread" in undefined(F.cdnv, features, torch.tensor([0, 0, 1, 1, 2, 2]))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("measure", OF_MEANS)
def test_means_that_are_not_finite(measure: Measure, bad: float) -> None:
    assert "not finite" in undefined(measure, with_bad(means_of(*sample()), bad))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("measure", OF_MEANS)
def test_means_that_coincide(measure: Measure, dtype: torch.dtype) -> None:
    same = torch.zeros(K, D) if measure is F.nc2_of_distance else torch.full((K, D), 0.1)
    assert "coincide" in (why := undefined(measure, same.to(dtype))) or "zero" in why


def test_a_mean_in_the_middle_of_all_has_no_angle() -> None:
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    assert "class 2" in undefined(F.nc2_equiangle, means)


@pytest.mark.parametrize("measure", OF_CLASSIFIER)
@pytest.mark.parametrize("bad", BAD)
def test_classifiers_and_means_that_are_not_finite(measure: Measure, bad: float) -> None:
    means = means_of(*sample())
    assert "classifier is not finite" in undefined(measure, with_bad(means, bad), means)
    assert "class means are not finite" in undefined(measure, means, with_bad(means, bad))


@pytest.mark.parametrize("measure", OF_CLASSIFIER)
def test_classifiers_without_direction(measure: Measure) -> None:
    means = means_of(*sample())
    across = torch.cat([torch.zeros(K, D), torch.ones(K, 1)], dim=1)
    assert "zero" in undefined(measure, torch.zeros(K, D), means)
    assert "orthogonal" in undefined(measure, across, torch.cat([means, torch.zeros(K, 1)], dim=1))


@pytest.mark.parametrize("bad", BAD)
def test_agreement_with_what_is_not_finite(bad: float) -> None:
    features, target = sample()
    means = means_of(features, target)
    broken = with_bad(features, bad)
    assert "not finite" in undefined(F.ncc_accuracy, broken, target, means)
    assert "not finite" in undefined(F.ncc_accuracy, features, target, with_bad(means, bad))
    assert "not finite" in undefined(F.nc4, broken, means, means)
    assert "not finite" in undefined(F.nc4, features, with_bad(means, bad), means)
    assert "not finite" in undefined(F.nc4, features, means, with_bad(means, math.nan))
    assert "not finite" in undefined(F.nc4, features, means, means, torch.tensor([0.0, math.nan, 0.0, 0.0]))
    with pytest.warns(UserWarning, match="nearest class mean is undefined"):
        assert F.nearest_class_center(broken, means).tolist()[1] == -1


def test_agreement_of_no_samples() -> None:
    means = means_of(*sample())
    assert "no samples" in undefined(F.ncc_accuracy, torch.zeros(0, D), torch.zeros(0, dtype=torch.long), means)
    assert "no samples" in undefined(F.nc4, torch.zeros(0, D), means, means)


def test_a_class_that_is_ruled_out_is_no_undefined_decision() -> None:
    bias = torch.tensor([-math.inf, 0.0])
    assert classifier_decisions(torch.ones(2, 1), torch.tensor([[5.0], [1.0]]), bias).tolist() == [1, 1]


@pytest.mark.parametrize("bad", [*BAD, 0.0, -1.0])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_separation_of_what_has_no_logarithm(bad: float, place: int) -> None:
    values = torch.tensor([4.0, 2.0, 1.0])
    values[place] = bad
    assert f"layer {place} is not positive and finite" in undefined(F.separation_law, values)


@pytest.mark.parametrize("value", [1.0, 0.1, 3e-7, 2e9])
@pytest.mark.parametrize("layers", [2, 3, 7])
def test_a_flat_separation_explains_nothing(value: float, layers: int) -> None:
    with pytest.warns(UserWarning, match="all values are the same"):
        law = F.separation_law(torch.full((layers,), value, dtype=torch.float64))
    assert law.slope.item() == pytest.approx(0, abs=1e-12)
    assert law.r_squared.isnan()


TAGS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]] * 3)


@pytest.mark.parametrize("bad", BAD)
def test_multilabel_features_that_are_not_finite(bad: float) -> None:
    assert "not finite" in undefined(F.multilabel_collapse, with_bad(torch.randn(12, 3), bad), TAGS)


def test_multilabel_features_without_sets_apart() -> None:
    assert "coincide" in undefined(F.multilabel_collapse, torch.full((12, 3), 0.1), TAGS)


def scaled(features: Tensor, tags: Tensor) -> Tensor:
    found: MultilabelCollapse = F.multilabel_collapse(features, tags)
    return found.scaled_average


def test_scaled_average_of_no_direction() -> None:
    simplex = torch.eye(3) - 1 / 3
    alone = TAGS[:3].repeat(2, 1)
    assert "several, but not all" in undefined(scaled, alone.float() @ simplex + torch.randn(6, 3), alone)
    centred = torch.cat([simplex, torch.zeros(1, 3)]).repeat(3, 1)
    assert "centre of all" in undefined(scaled, centred, TAGS)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_scaled_average_does_not_depend_on_the_scale(scale: float) -> None:
    features = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert scaled(scale * features, TAGS).item() == pytest.approx(scaled(features, TAGS).item(), rel=1e-9)


@pytest.mark.parametrize("tags", [2 * TAGS, TAGS - 1, TAGS * math.nan])
def test_tags_that_are_none(tags: Tensor) -> None:
    with pytest.raises(ValueError, match="tags must be 0 or 1"):
        F.multilabel_collapse(torch.randn(12, 3), tags)


# Dtypes, sizes and ranges


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("measure", OF_FEATURES)
def test_labels_come_in_any_integer_dtype(measure: Measure, dtype: torch.dtype) -> None:
    features, target = sample()
    assert torch.equal(measure(features, target.to(dtype)), measure(features, target))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_labels_of_any_integer_dtype_elsewhere(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    features, target = sample()
    means = means_of(features, target)
    assert torch.equal(F.ncc_accuracy(features, target.to(dtype), means), F.ncc_accuracy(features, target, means))
    assert (
        logistic_path(features, target.to(dtype), K, [1.0])[0].loss == logistic_path(features, target, K, [1.0])[0].loss
    )
    expected = F.nc1(features, target)
    monkeypatch.setattr(STATISTICS, "MAX_SCATTER_FEATURES", D - 1)
    torch.testing.assert_close(F.nc1(features, target.to(dtype)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_come_in_any_floating_dtype(dtype: torch.dtype) -> None:
    features, target = sample()
    low, means = features.to(dtype), means_of(features.to(dtype), target)
    for measure in OF_FEATURES:
        assert torch.equal(measure(low, target), measure(low.double(), target))
    assert torch.equal(F.ncc_accuracy(low, target, means), F.ncc_accuracy(low.double(), target, means))
    assert torch.equal(F.nc4(low, means, means.to(dtype)), F.nc4(low.double(), means, means.to(dtype).double()))
    fit = logistic_path(low, target, K, [1.0])[0]
    assert fit.weight.dtype == (dtype if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("label", [K, 2 * K, -1])
def test_labels_of_no_class_are_refused(label: int) -> None:
    features, target = sample()
    target[5] = label
    means = torch.eye(K, D)
    calls: list[Callable[[], Any]] = [
        *(lambda measure=measure: measure(features, target, K) for measure in OF_FEATURES),
        lambda: F.ncc_accuracy(features, target, means),
        lambda: F.class_statistics(features, target, K),
        lambda: F.update_class_statistics(F.empty_class_statistics(K, D), features, target),
        lambda: logistic_path(features, target, K, [1.0]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="labels must"):
            call()


def test_a_batch_with_a_label_of_no_class_leaves_the_sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STATISTICS, "_CHUNK_ELEMENTS", 4 * D)
    features, target = sample()
    target[-1] = K  # in the last chunk
    sums = F.empty_class_statistics(K, D)
    with pytest.raises(ValueError, match="labels must"):
        update_class_statistics_(sums, features, target)
    assert sums.counts.sum() == 0


@pytest.mark.parametrize("measure", OF_FEATURES)
@pytest.mark.parametrize(
    ("features", "target", "message"),
    [
        (torch.zeros(0, D), torch.zeros(0, dtype=torch.long), "at least one sample"),
        (torch.zeros(4, 0), torch.arange(4), r"shape \(N, D\)"),
        (torch.zeros(4, D, 2), torch.arange(4), r"shape \(N, D\)"),
        (torch.zeros(4, D), torch.arange(3), r"target \(N,\)"),
        (torch.zeros(4, D), torch.arange(4)[:, None], r"target \(N,\)"),
        (torch.zeros(4, D, dtype=torch.long), torch.arange(4), "floating point"),
        (torch.zeros(4, D), torch.zeros(4), "target integers"),
    ],
)
def test_what_is_no_sample_is_refused(measure: Measure, features: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(features, target)


@pytest.mark.parametrize("measure", OF_MEANS)
@pytest.mark.parametrize("means", [torch.ones(1, D), torch.ones(D), torch.ones(2, 3, 4)])
def test_what_is_no_means_is_refused(measure: Measure, means: Tensor) -> None:
    with pytest.raises(ValueError, match="class means must have shape"):
        measure(means)


def test_a_probe_of_nothing_is_refused_and_one_of_constants_is_fitted() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        logistic_path(torch.zeros(0, D), torch.zeros(0, dtype=torch.long), 2, [1.0])
    with pytest.raises(ValueError, match="floating point"):
        logistic_path(torch.zeros(4, D, dtype=torch.long), torch.arange(4) % 2, 2, [1.0])
    (fit,) = logistic_path(torch.full((4, D), 7.0), torch.arange(4) % 2, 2, [1.0])
    assert fit.weight.isfinite().all()
    assert fit.loss == pytest.approx(math.log(2))


def test_statistics_of_other_widths_do_not_merge() -> None:
    with pytest.raises(ValueError, match="equally many classes and features"):
        F.merge_class_statistics(F.empty_class_statistics(K, 1), F.empty_class_statistics(K, D))
