"""Metrics without a value: nan with a warning, and a state that stays whole."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from nc_finetune import functional as F
from nc_finetune.metrics import AveragePrecision, BalancedAccuracy, NeuralCollapse, classification_metrics
from nc_finetune.metrics.accuracy import Accuracy

K, D = 4, 6
EVERYTHING = (
    *("nc1", "trace_ratio", "cdnv", "vci", "h_score", "effective_rank", "nc2_equinorm", "nc2_equiangle"),
    *("nc2_etf_distance", "nc2_of_distance", "nc3_etf_distance", "nc3_of_distance", "nc4", "ncc_accuracy"),
)
SECOND = [("nc4", "ncc_accuracy"), ("ncc_accuracy",), EVERYTHING]
BAD = [math.nan, math.inf, -math.inf]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16]


def sample(number: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(number) % K
    centres = 3 * torch.randn(K, D, generator=generator)
    return centres[target] + torch.randn(number, D, generator=generator), target


def make(measures: tuple[str, ...] = EVERYTHING, **options: Any) -> NeuralCollapse:
    metric = NeuralCollapse(K, D, measures=measures, **options)
    metric.set_classifier(torch.randn(K, D, generator=torch.Generator().manual_seed(9)))
    return metric


def measured_in_two_passes(metric: NeuralCollapse, *batches: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    for batch in batches:
        metric.update(*batch)
    metric.begin_second_pass()
    for batch in batches:
        metric.update(*batch)
    found: dict[str, Tensor] = metric.compute()
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# forward()


@pytest.mark.parametrize("measures", SECOND)
@pytest.mark.parametrize("scatter", [True, False])
def test_forward_measures_the_batch_in_two_passes_and_keeps_the_whole(measures: tuple[str, ...], scatter: bool) -> None:
    measures = tuple(name for name in measures if scatter or name not in ("vci", "h_score"))
    first, second = sample(40, 1), sample(36, 2)
    metric = make(measures, scatter=scatter)
    for batch in (first, second):
        assert_same(metric(*batch), measured_in_two_passes(make(measures, scatter=scatter), batch))
    metric.begin_second_pass()
    for batch in (first, second):  # in the second pass, too
        assert_same(metric(*batch), measured_in_two_passes(make(measures, scatter=scatter), batch))
    assert_same(metric.compute(), measured_in_two_passes(make(measures, scatter=scatter), first, second))


@pytest.mark.parametrize("fault", ["label", "shape", "dtype"])
@pytest.mark.parametrize("second_pass", [False, True])
def test_a_batch_that_is_refused_leaves_the_state_as_it_was(fault: str, second_pass: bool) -> None:
    features, target = sample()
    metric = make()
    metric.update(features, target)
    if second_pass:
        metric.begin_second_pass()
    bad = {
        "label": (features, torch.full_like(target, K)),
        "shape": (features[:, :-1], target),
        "dtype": (features.long(), target),
    }[fault]
    for call in (metric, metric.update):
        with pytest.raises(ValueError, match=r"labels must|features must"):
            call(*bad)
    if not second_pass:
        metric.begin_second_pass()
    metric.update(features, target)
    assert_same(metric.compute(), measured_in_two_passes(make(), sample()))


def test_forward_without_the_classifier_adds_nothing() -> None:
    metric = NeuralCollapse(K, D, measures=("nc4", "ncc_accuracy"))
    with pytest.raises(RuntimeError, match="set_classifier"):
        metric(*sample())
    assert metric.counts.sum() == 0


def test_forward_of_a_batch_that_lacks_classes_is_nan_and_the_whole_is_not() -> None:
    features, target = sample()
    metric = make()
    with pytest.warns(UserWarning, match="no samples of class 2, 3"):
        found = metric(features[target < 2], target[target < 2])
    assert all(value.isnan() for value in found.values())
    metric.update(features[target > 1], target[target > 1])
    metric.begin_second_pass()
    metric.update(features, target)
    assert all(value.isfinite() for value in metric.compute().values())


def test_an_empty_batch_changes_nothing() -> None:
    metric = make()
    metric.update(*sample())
    with pytest.warns(UserWarning, match="no samples of class"):
        metric(torch.zeros(0, D), torch.zeros(0, dtype=torch.long))
    metric.begin_second_pass()
    metric.update(*sample())
    assert_same(metric.compute(), measured_in_two_passes(make(), sample()))


# Merging


def test_metrics_merge_before_the_second_pass_and_not_within() -> None:
    one, other = make(), make()
    one.update(*sample(40, 1))
    other.update(*sample(36, 2))
    other.begin_second_pass()
    for first, second in ((one, other), (other, one)):
        with pytest.raises(RuntimeError, match="merge before it begins"):
            first.merge_state(second)


def test_metrics_that_look_from_the_same_means_merge() -> None:
    features, target = sample()
    whole, part = make(), make()
    for metric in (whole, part):
        metric.update(features, target)
        metric.begin_second_pass()
    whole.update(features[:20], target[:20])
    part.counts = torch.zeros_like(part.counts)
    part.spreads = torch.zeros_like(part.spreads)
    part.scatter = torch.zeros_like(part.scatter)
    part.update(features[20:], target[20:])
    whole.merge_state(part)
    assert_same(whole.compute(), measured_in_two_passes(make(), sample()))


@pytest.mark.parametrize("other", [NeuralCollapse(K, 1), NeuralCollapse(K + 1, D), NeuralCollapse(K, D, scatter=False)])
def test_metrics_of_other_features_do_not_merge(other: NeuralCollapse) -> None:
    metric = NeuralCollapse(K, D)
    metric.update(*sample())
    with pytest.raises(ValueError, match="merge"):
        metric.merge_state(other)
    assert metric.counts.sum() == 40


# What is not finite


def broken(features: Tensor, bad: float) -> Tensor:
    changed = features.clone()
    changed[7, 2] = bad
    return changed


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("measures", SECOND)
def test_features_that_are_not_finite_end_no_fit(measures: tuple[str, ...], bad: float) -> None:
    features, target = sample()
    with pytest.warns(UserWarning, match="the features are not finite") as caught:
        found = measured_in_two_passes(make(measures), (broken(features, bad), target))
    assert all(value.isnan() for value in found.values())
    assert len(caught) == 1


@pytest.mark.parametrize("bad", BAD)
def test_features_that_are_not_finite_in_the_second_pass_alone(bad: float) -> None:
    features, target = sample()
    metric = make()
    metric.update(features, target)
    metric.begin_second_pass()
    metric.update(broken(features, bad), target)
    with pytest.warns(UserWarning, match="undefined") as caught:
        found = metric.compute()
    assert {name for name, value in found.items() if value.isnan()} == {"nc4", "ncc_accuracy"}
    assert len(caught) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_classifier_that_is_not_finite_makes_its_own_measures_nan(bad: float) -> None:
    metric = make()
    metric.set_classifier(torch.full((K, D), bad))
    with pytest.warns(UserWarning, match="classifier"):
        found = measured_in_two_passes(metric, sample())
    assert {name for name, value in found.items() if value.isnan()} == {"nc3_etf_distance", "nc3_of_distance", "nc4"}


def test_a_metric_without_samples_is_nan() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = NeuralCollapse(K, D).compute()
    assert all(value.isnan() for value in found.values())
    assert any("no samples of class 0, 1, 2, 3" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("scatter", [True, False])
def test_collapse_takes_labels_of_any_integer_dtype(dtype: torch.dtype, scatter: bool) -> None:
    features, target = sample()
    names = ("nc1", "nc4", "ncc_accuracy")
    found = measured_in_two_passes(make(names, scatter=scatter), (features, target.to(dtype)))
    assert_same(found, measured_in_two_passes(make(names), (features, target)))


# Metrics of classifiers

Make = Callable[[], Any]
OF_ONE_LABEL: list[Make] = [lambda: Accuracy(3), lambda: BalancedAccuracy(3)]
SCORES = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
LABELS = torch.tensor([0, 1, 2, 1])
TAGS = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("make", "targets"), [(OF_ONE_LABEL[0], LABELS), (OF_ONE_LABEL[1], LABELS), (lambda: AveragePrecision(3), TAGS)]
)
def test_predictions_that_are_not_finite_have_no_accuracy(make: Make, targets: Tensor, bad: float) -> None:
    scores = SCORES.clone()
    scores[1, 2] = bad
    metric = make()
    metric.update(SCORES, targets)
    metric.update(scores, targets)
    with pytest.warns(UserWarning, match="predictions of 1 of 8 are not finite"):
        assert metric.compute().isnan()
    metric.reset()
    assert metric(SCORES, targets).isfinite()
    with pytest.warns(UserWarning, match="not finite"):
        assert metric(scores, targets).isnan()
    metric.reset()
    metric.update(SCORES, targets)
    assert metric.compute().isfinite()


@pytest.mark.parametrize("make", OF_ONE_LABEL)
def test_a_class_that_is_ruled_out_is_a_finite_prediction(make: Make) -> None:
    metric = make()
    metric.update(torch.tensor([[1.0, 0.0, -math.inf]]), torch.tensor([0]))
    assert metric.compute() == 1


@pytest.mark.parametrize("make", [*OF_ONE_LABEL, lambda: AveragePrecision(3)])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_samples_have_no_accuracy(make: Make) -> None:
    with pytest.warns(UserWarning, match="there are no samples"):
        assert make().compute().isnan()


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("make", OF_ONE_LABEL)
def test_accuracies_take_labels_of_any_integer_dtype(make: Make, dtype: torch.dtype) -> None:
    metric, expected = make(), make()
    assert metric(SCORES, LABELS.to(dtype)) == expected(SCORES, LABELS)


@pytest.mark.parametrize("classes", [20, 200])  # 200 * 200 is more than 8 or 16 bits hold
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_small_dtypes_hold_many_classes(dtype: torch.dtype, classes: int) -> None:
    labels = torch.arange(classes)
    for metric in classification_metrics(classes).values():
        assert metric(torch.eye(classes), labels.to(dtype)) == 1  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("make", OF_ONE_LABEL)
def test_accuracies_take_scores_of_any_floating_dtype(make: Make, dtype: torch.dtype) -> None:
    metric, expected = make(), make()
    assert metric(SCORES.to(dtype), LABELS) == expected(SCORES, LABELS)


@pytest.mark.parametrize("label", [3, -1])
@pytest.mark.parametrize("make", OF_ONE_LABEL)
def test_labels_of_no_class_are_refused_and_not_counted(make: Make, label: int) -> None:
    metric = make()
    metric.update(SCORES, LABELS)
    before = metric.compute()
    with pytest.raises(ValueError, match="labels must lie in"):
        metric.update(SCORES, torch.full_like(LABELS, label))
    assert metric.compute() == before


@pytest.mark.parametrize("make", OF_ONE_LABEL)
def test_merged_accuracies_are_those_of_the_union(make: Make) -> None:
    one, other, whole = make(), make(), make()
    one.update(SCORES[:1], LABELS[:1])
    other.update(SCORES[1:], LABELS[1:])
    whole.update(SCORES, LABELS)
    one.merge_state(other)
    assert one.compute() == whole.compute()


@pytest.mark.parametrize("absent", [[0], [2], [0, 3], [0, 1, 2]])
def test_tags_that_no_image_has_do_not_count(absent: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    scores, tags = torch.rand(30, 4, generator=generator), torch.randint(2, (30, 4), generator=generator)
    tags[:, absent] = 0
    metric = AveragePrecision(4)
    for start in (0, 10, 20):
        metric.update(scores[start : start + 10], tags[start : start + 10])
    with pytest.warns(UserWarning, match=f"no sample has: {', '.join(map(str, absent))}\\.$") as caught:
        found = metric.compute()
    kept = [tag for tag in range(4) if tag not in absent]
    expected = average_precision_score(tags[:, kept].numpy(), scores[:, kept].numpy(), average="macro")
    assert found.item() == pytest.approx(expected, abs=1e-6)
    assert len(caught) == 1


def test_no_tag_at_all_has_no_average_precision() -> None:
    metric = AveragePrecision(3)
    metric.update(SCORES, torch.zeros_like(TAGS))
    with pytest.warns(UserWarning, match="no sample has a tag"):
        assert metric.compute().isnan()


def test_every_measure_is_that_of_its_function() -> None:
    features, target = sample()
    found = measured_in_two_passes(make(), (features, target))
    means = F.class_statistics(features, target).means
    assert found["ncc_accuracy"] == F.ncc_accuracy(features, target, means)
    weight = torch.randn(K, D, generator=torch.Generator().manual_seed(9))
    assert found["nc4"] == F.nc4(features, means, weight)
