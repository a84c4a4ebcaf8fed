"""A head in closed form, and the choice of the features under it."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from nc_finetune.functional import linear_discriminant
from nc_finetune.functional.class_statistics import empty_class_statistics, update_class_statistics_
from nc_finetune.functional.readout import SolvedHead, choose_columns, solve_head


def make_samples(
    number: int = 60, width: int = 8, classes: int = 4, gap: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(number) % classes
    means = gap * torch.randn(classes, width, generator=generator, dtype=torch.float64)
    return means[target] + torch.randn(number, width, generator=generator, dtype=torch.float64), target


def logits_of(head: SolvedHead, features: Tensor) -> Tensor:
    return features.double() @ head.weight.T + head.bias


@pytest.mark.parametrize("width", [8, 200])
@pytest.mark.parametrize("priors", ["equal", "counts"])
def test_logits_over_the_temperature_are_scikit_learns(width: int, priors: str) -> None:
    features, target = make_samples(width=width)
    target[:20] = 0
    head = solve_head(features, target, 4, shrinkage=0.3, priors=priors)  # type: ignore[arg-type]
    # scikit-learn weighs the covariances of the classes by the priors; by those of the samples all weigh the same.
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(features.numpy(), target.numpy())
    expected = torch.from_numpy(reference.decision_function(features.numpy()))
    if priors == "equal":
        expected = expected - (target.bincount().double() / len(target)).log()
    differences = logits_of(head, features) * head.temperature - expected
    assert (differences - differences.mean(1, keepdim=True)).abs().max() < 1e-8


def test_leave_one_out_is_that_of_heads_without_the_sample() -> None:
    features, target = make_samples(24, 5)
    head = solve_head(features, target, 4, shrinkage=0.2)
    for row in range(24):
        rest = torch.arange(24) != row
        other = linear_discriminant(features[rest], target[rest], 0.2, num_classes=4)
        logits = (features[row] @ other.weight.T + other.bias) / head.temperature
        torch.testing.assert_close(F.log_softmax(head.logits[row], 0), F.log_softmax(logits, 0), rtol=1e-9, atol=1e-9)
    assert head.accuracy == (head.logits.argmax(1) == target).double().mean().item()
    assert head.loss == pytest.approx(F.cross_entropy(head.logits, target).item())


def test_no_temperature_is_better_than_the_one_that_is_taken() -> None:
    features, target = make_samples(gap=0.5)
    head = solve_head(features, target, 4)
    for factor in (0.8, 0.95, 1.05, 1.3):
        assert F.cross_entropy(head.logits * factor, target) > head.loss - 1e-9


@pytest.mark.parametrize(
    "order", [torch.arange(59, -1, -1), torch.randperm(60, generator=torch.Generator().manual_seed(3))]
)
def test_order_of_the_samples_does_not_matter(order: Tensor) -> None:
    features, target = make_samples(width=100)
    one, other = solve_head(features, target, 4), solve_head(features[order], target[order], 4)
    assert one.shrinkage == other.shrinkage
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(one.logits[order], other.logits, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("parts", [1, 7, 60])
def test_statistics_of_any_batches_give_the_head_of_the_samples(parts: int) -> None:
    features, target = make_samples()
    statistics = empty_class_statistics(4, 8)
    for rows in torch.arange(60).tensor_split(parts):
        update_class_statistics_(statistics, features[rows], target[rows])
    whole = solve_head(features, target, 4)
    head = solve_head(statistics, target, 4, samples=features)
    assert head.shrinkage == whole.shrinkage
    torch.testing.assert_close(head.weight, whole.weight, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(head.bias, whole.bias, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(head.logits, whole.logits, rtol=1e-7, atol=1e-8)


def test_statistics_and_a_sample_leave_out_only_the_sample() -> None:
    features, target = make_samples(200)
    statistics = empty_class_statistics(4, 8)
    update_class_statistics_(statistics, features, target)
    head = solve_head(statistics, target[::5], 4, samples=features[::5], shrinkage=0.1)
    whole = solve_head(features, target, 4, shrinkage=0.1)
    torch.testing.assert_close(head.logits * head.temperature, whole.logits[::5] * whole.temperature)


# --- classes of few samples


def test_a_class_without_samples_is_never_called_and_costs_a_finite_loss() -> None:
    features, target = make_samples(classes=3)
    target[target == 2] = 4
    with pytest.warns(UserWarning, match=r"no sample of class 2, 3: nothing is ever called that"):
        head = solve_head(features, target, 5)
    logits = logits_of(head, 100 * torch.randn(500, 8))
    assert {*logits.argmax(1).tolist()} <= {0, 1, 4}
    ordinary = logits_of(head, features)
    assert F.cross_entropy(ordinary, torch.full((60,), 2)).isfinite()
    assert (head.logits.argmax(1) == target).double().mean() == head.accuracy
    without = solve_head(features, (target == 4) * 2 + (target == 1), 3)
    torch.testing.assert_close(head.weight[[0, 1, 4]], without.weight)
    assert (head.accuracy, head.shrinkage) == (without.accuracy, without.shrinkage)


def test_a_single_sample_of_a_class_cannot_be_left_out_but_counts() -> None:
    features, target = make_samples()
    target[target == 3] = 2
    target[0] = 3
    head = solve_head(features, target, 4)
    assert head.logits[0].isnan().all()
    assert head.logits[1:].isfinite().all()
    assert head.accuracy == (head.logits[1:].argmax(1) == target[1:]).double().mean().item()
    assert torch.tensor([head.loss, head.temperature]).isfinite().all()
    assert logits_of(head, features)[0].argmax() == 3


def test_too_few_samples_to_choose_a_shrinkage_are_said() -> None:
    features, target = make_samples(4, 3)
    target[3] = 2  # one class of two samples: without one of them nothing is left
    with pytest.warns(UserWarning, match="too few samples a class to choose a shrinkage"):
        head = solve_head(features, target, 3)
    assert head.shrinkage == 0.5
    assert head.weight.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in (0.2, [0.2], 1):
            assert solve_head(features, target, 3, shrinkage=given).shrinkage == (1 if given == 1 else 0.2)


@pytest.mark.parametrize(
    ("features", "target", "message"),
    [
        (torch.randn(4, 3), torch.arange(4), "no class has more than one; give at least one of them two"),
        (torch.ones(8, 3), torch.arange(8) % 4, "samples coincide with the mean of their class"),
        (torch.arange(8.0).remainder(4).view(8, 1), torch.arange(8) % 4, "samples coincide"),
        (torch.full((8, 3), torch.nan), torch.arange(8) % 4, "must be finite"),
        (torch.randn(8, 3), torch.arange(8), r"labels must be integers in \[0, 4\)"),
        (torch.randn(8, 3), -torch.ones(8).long(), r"labels must be integers in \[0, 4\)"),
    ],
)
def test_what_has_no_discriminant_is_refused(features: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve_head(features, target, 4)


def test_one_class_alone_is_always_called() -> None:
    features, _ = make_samples()
    with pytest.warns(UserWarning, match="no sample of class 0, 2"):
        head = solve_head(features, torch.ones(60).long(), 3)
    assert (logits_of(head, 10 * torch.randn(50, 8)).argmax(1) == 1).all()


# --- which columns


def test_the_preferred_columns_stay_where_others_are_no_better() -> None:
    features, target = make_samples(400, 6, gap=2.0)
    groups = {"first": slice(0, 6), "again": torch.arange(6)}
    for prefer in groups:
        assert choose_columns(features, target, 4, groups, prefer).name == prefer


def test_columns_that_are_clearly_better_are_taken_and_noise_is_not() -> None:
    signal, target = make_samples(200, 4, gap=3.0)
    noise, _ = make_samples(200, 4, gap=0.0, seed=1)
    features = torch.cat([signal, noise], dim=1)
    groups = {"noise": slice(4, 8), "signal": slice(0, 4), "both": slice(0, 8)}
    found = choose_columns(features, target, 4, groups, "noise")
    assert found.name != "noise"
    assert found.accuracies["signal"] > 0.8 > 0.5 > found.accuracies["noise"]
    assert found.samples == 200
    assert choose_columns(features, target, 4, groups, "signal").name == "signal"


def test_of_many_samples_some_of_every_class_are_looked_at() -> None:
    features, target = make_samples(1000, 4, gap=3.0)
    target[target == 3] = 0
    target[:3] = 3  # three of a thousand
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = choose_columns(features, target, 4, {"a": slice(0, 2), "b": slice(0, 4)}, "a", max_samples=40)
    assert found.samples == 40
    assert found.head is None  # of some samples it is not what all would give
    again = choose_columns(features, target, 4, {"a": slice(0, 2), "b": slice(0, 4)}, "a", max_samples=40)
    assert found == again


def test_a_choice_on_all_samples_has_the_head_that_would_be_solved_next() -> None:
    features, target = make_samples(200, 4, gap=3.0)
    found = choose_columns(features, target, 4, {"a": slice(0, 2), "b": slice(0, 4)}, "a")
    head = solve_head(features[:, :4] if found.name == "b" else features[:, :2], target, 4)
    assert found.head is not None
    torch.testing.assert_close(found.head.weight, head.weight, rtol=0, atol=0)
    torch.testing.assert_close(found.head.logits, head.logits, rtol=0, atol=0)


@pytest.mark.parametrize("classes", [3, 6])
def test_a_choice_says_nothing_of_classes_that_the_head_will_name(classes: int) -> None:
    features, target = make_samples(12, 4, classes=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_columns(features, target, classes, {"a": slice(0, 2), "b": slice(0, 4)}, "a")
