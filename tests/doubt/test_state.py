"""What is kept of the training images, and what it says of others."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from nc_finetune.doubt import DoubtState, take_state
from nc_finetune.doubt.held_out import held_out_distances
from nc_finetune.doubt.tables import quantile_table, score_table, share_above, threshold_of
from nc_finetune.functional import (
    class_gaussians,
    class_statistics,
    conformal_scores,
    conformal_threshold,
    left_out_distances,
    mahalanobis,
    relative_mahalanobis,
)
from nc_finetune.functional.readout import SolvedHead, solve_head

CLASSES = 3


def make_samples(number: int = 240, width: int = 20, seed: int = 1, sigma: float = 1.0) -> tuple[Tensor, Tensor]:
    centres = 3 * torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % CLASSES
    return centres[labels] + sigma * torch.randn(number, width, generator=generator), labels


def solved(features: Tensor, labels: Tensor) -> SolvedHead:
    return solve_head(features, labels, CLASSES, shrinkage=0.1)


def take(features: Tensor, labels: Tensor, **options: Any) -> DoubtState:
    return take_state(features, labels, CLASSES, **{"shrinkage": 0.1, **options})


# --- tables


def test_shares_are_those_of_the_values() -> None:
    values = torch.randn(5000, dtype=torch.float64)
    table = quantile_table(values)
    new = torch.linspace(-5, 5, 101, dtype=torch.float64)
    expected = (values > new.unsqueeze(1)).double().mean(1)
    torch.testing.assert_close(share_above(table, new), expected, rtol=0, atol=2e-3)
    assert share_above(table, torch.tensor([torch.inf]).double()) == 0


@pytest.mark.parametrize("number", [1, 2, 7])
def test_few_or_equal_values_have_shares_too(number: int) -> None:
    found = share_above(quantile_table(torch.full((number,), 3.0)), torch.tensor([2.0, 4.0]).double())
    assert found.tolist() == [1, 0]


@pytest.mark.parametrize("number", [30, 1001, 1002, 3333])
@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.95])
def test_a_table_gives_the_threshold_or_a_little_more(number: int, coverage: float) -> None:
    scores = torch.rand(number, dtype=torch.float64)
    exact, found = conformal_threshold(scores, coverage), threshold_of(score_table(scores), number, coverage)
    shares = [(scores <= limit).double().mean().item() for limit in (exact, found)]
    assert exact <= found
    assert shares[1] - shares[0] <= 0.002
    if number <= 1001:
        assert exact == found


def test_sets_of_new_samples_hold_the_right_class_as_often_as_asked() -> None:
    generator, covered = torch.Generator().manual_seed(0), []
    for _ in range(300):
        logits = torch.randn(100, 4, generator=generator)
        labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
        scores = conformal_scores(logits.softmax(1), labels)
        covered.append((scores[50:] <= conformal_threshold(scores[:50], 0.8)).double().mean())
    assert torch.stack(covered).mean().item() == pytest.approx(0.8 + 0.01, abs=0.015)  # at most 1 / 51 above


# --- distances


def test_few_samples_are_left_out_exactly() -> None:
    features, labels = make_samples(30)
    found = held_out_distances(features, labels, CLASSES, 0.1, 64)
    exact = left_out_distances(features, labels, shrinkage=0.1)
    torch.testing.assert_close(found, torch.stack([exact.nearest, exact.relative]))


def test_many_are_measured_by_the_other_nine_tenths() -> None:
    features, labels = make_samples(150, 200)
    features = features * 0.9 ** torch.arange(200)  # without a gap the decomposition is off by some per cent
    found = held_out_distances(features, labels, CLASSES, 0.1, 30)
    inside = torch.zeros(150, dtype=torch.bool)
    inside[labels.argsort(stable=True)[::10]] = True
    given = class_gaussians(features[~inside], labels[~inside], shrinkage=0.1, rank=30, num_classes=CLASSES)
    expected = torch.stack(
        [mahalanobis(features[inside], given).amin(1), relative_mahalanobis(features[inside], given)]
    )
    torch.testing.assert_close(found[:, inside], expected, rtol=0.02, atol=0.5)
    assert found.isfinite().all()


def test_copies_do_not_measure_each_other_where_folds_keep_them_together() -> None:
    features, labels = make_samples(60, 80)
    twice, both = torch.cat([features, features]), torch.cat([labels, labels])
    folds = torch.arange(60).repeat(2) // 6
    folds[3] = folds[63] = -1
    found = held_out_distances(twice, both, CLASSES, 0.5, 64, folds)
    assert found[:, [3, 63]].isnan().all()
    kept = folds >= 0
    torch.testing.assert_close(found[:, :60][:, kept[:60]], found[:, 60:][:, kept[60:]])


@pytest.mark.parametrize("width", [20, 200])
def test_five_in_a_hundred_of_new_samples_are_strangers(width: int) -> None:
    features, labels = make_samples(300, width)
    state = take(features, labels)
    new, _ = make_samples(2000, width, seed=2)
    found = state(new, torch.zeros(2000, CLASSES))
    assert 0.02 < found.stranger.float().mean() < 0.09
    assert abs(found.unlike.mean() - 0.5) < 0.1
    far, _ = make_samples(100, width, seed=3, sigma=4)
    assert state(far, torch.zeros(100, CLASSES)).stranger.all()


def test_what_is_said_follows_from_the_two_distances() -> None:
    features, labels = make_samples(30)
    state, new = take(features, labels), make_samples(9, seed=2)[0]
    given = class_gaussians(features, labels, shrinkage=0.1)
    pair = mahalanobis(new, given).amin(1), relative_mahalanobis(new, given)
    left = left_out_distances(features, labels, shrinkage=0.1)
    scores = []
    for found, known in zip(pair, (left.nearest, left.relative), strict=True):
        middle, far = known.quantile(0.5), known.quantile(0.9)
        scores.append((found - middle) / (far - middle))
    torch.testing.assert_close(state.measure(new)[2].double(), torch.maximum(*scores), rtol=1e-4, atol=1e-4)


def test_statistics_of_a_pass_give_nearly_the_same() -> None:
    features, labels = make_samples(3000)
    whole = take(features, labels)
    sums = class_statistics(features, labels, CLASSES)
    summed = take(features[:500], labels[:500], statistics=sums)
    torch.testing.assert_close(summed.means, whole.means)
    new = make_samples(200, seed=2)[0]
    shares = [state(new, torch.zeros(200, CLASSES)).unlike for state in (whole, summed)]
    assert (shares[0] - shares[1]).abs().mean() < 0.04


# --- temperature and sets


def test_temperature_and_sets_come_from_left_out_logits() -> None:
    features, labels = make_samples(300, sigma=4.0)
    head = solved(features, labels)
    state = take(features, labels, logits=5 * head.logits)
    assert state.temperature.item() == pytest.approx(5, rel=0.02)
    assert state.sources.tolist() == [1, 1]
    new, right = make_samples(3000, seed=2, sigma=4.0)
    logits = 5 * (new.double() @ head.weight.T + head.bias)
    for coverage in (0.8, 0.9):
        found = state(new, logits, coverage)
        assert found.in_set.gather(1, right.unsqueeze(1)).float().mean() == pytest.approx(coverage, abs=0.04)
    torch.testing.assert_close(found.probabilities, (logits / state.temperature).softmax(1).float())


def test_a_tuned_network_is_compared_with_validation_images() -> None:
    train, labels = make_samples(200, sigma=0.1)
    val, val_labels = make_samples(200, seed=2)
    logits = torch.randn(200, CLASSES)
    new, _ = make_samples(1000, seed=3)
    known = take(train, labels, validation=(val, logits, val_labels), is_tuned=True)
    unknown = take(train, labels, is_tuned=True)
    strange = [state(new, torch.zeros(1000, CLASSES)).stranger.float().mean().item() for state in (known, unknown)]
    assert strange[0] == pytest.approx(0.05, abs=0.04)
    assert strange[1] > 0.9
    assert (known.is_too_sure, unknown.is_too_sure) == (False, True)
    assert (known.has_scores, unknown.has_scores) == (True, False)
    assert known.sources.tolist() == [2, 2]


def test_without_scores_a_set_holds_every_class() -> None:
    features, labels = make_samples()
    found = take(features, labels)(features, torch.randn(len(features), CLASSES))
    assert found.in_set.all()


def test_one_image_a_class_beside_others_is_left_out_of_the_tables() -> None:
    features, labels = make_samples(90)
    labels[labels == 2] = 1
    labels[0] = 2
    assert take(features, labels, rank=64).numbers.tolist() == [89, 0]


def test_a_class_without_images_is_never_near() -> None:
    features, labels = make_samples(90)
    kept = labels != 1
    state = take_state(features[kept], labels[kept], CLASSES, shrinkage=0.1)
    assert state.counts.tolist() == [30, 0, 30]
    assert state(features, torch.zeros(90, CLASSES)).unlike.isfinite().all()
    assert state(features[~kept], torch.zeros(30, CLASSES)).stranger.all()


# --- as a part of a model


def test_it_keeps_its_digits_and_comes_back_from_its_tensors() -> None:
    features, labels = make_samples()
    state = take(features, labels, logits=solved(features, labels).logits)
    new, logits = make_samples(50, seed=2)[0], torch.randn(50, CLASSES)
    expected = state(new, logits)
    holder = torch.nn.Module()
    holder.doubt = state
    holder.to(torch.bfloat16)
    assert {value.dtype for value in state.buffers()} == {torch.float32, torch.int64}
    found = DoubtState.of_state(holder.state_dict(), CLASSES)
    assert found is not None
    for again in (found, copy.deepcopy(state)):
        assert all(torch.equal(one, other) for one, other in zip(expected, again(new, logits), strict=True))
    other = take(*make_samples(seed=5), logits=solved(features, labels).logits)
    other.load_state_dict(state.state_dict())
    assert torch.equal(other(new, logits).unlike, expected.unlike)
    assert DoubtState.of_state({}, CLASSES) is None


def test_it_is_as_small_as_it_says() -> None:
    features, labels = make_samples(400, 500)
    state = take(features, labels, logits=solved(features, labels).logits)
    numbers = sum(value.numel() for value in state.state_dict().values())
    assert numbers <= (CLASSES + 64) * 501 + 4100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"doubt.means": None}, "there is no 'means'"),
        ({"doubt.means": torch.zeros(3, 4)}, r"shapes of counts, means, vectors and values do not fit, got \(3,\)"),
    ],
)
def test_damaged_tensors_are_refused(change: dict[str, Any], message: str) -> None:
    state = {f"doubt.{name}": value for name, value in take(*make_samples()).state_dict().items()} | change
    with pytest.raises(ValueError, match=message):
        DoubtState.of_state({name: value for name, value in state.items() if value is not None}, CLASSES)


def test_statistics_of_another_class_list_are_refused() -> None:
    state = {f"doubt.{name}": value for name, value in take(*make_samples()).state_dict().items()}
    with pytest.raises(ValueError, match="statistics are of 3 classes, and the model has 5"):
        DoubtState.of_state(state, 5)


def test_narrower_features_and_other_coverages_are_refused() -> None:
    features, labels = make_samples()
    state = take(features, labels, logits=solved(features, labels).logits)
    with pytest.raises(ValueError, match=r"features must have shape \(N, 20\)"):
        state.measure(features[:, :5])
    with pytest.raises(ValueError, match=r"coverage must lie between 0 and 1, such as 0\.9, got 90"):
        state(features, torch.zeros(240, CLASSES), 90)


def test_a_state_dict_brings_its_statistics_and_takes_those_of_others_away() -> None:
    from nc_finetune import ImageClassifier

    def built() -> ImageClassifier:
        return ImageClassifier("test_resnet", 2, weights=None)

    knowing, plain = built(), built()
    features = torch.randn(20, plain.method.num_features(plain.backbone))
    knowing.doubt = take_state(features, torch.arange(20) % 2, 2, shrinkage=0.5)
    target = built()
    target.load_state_dict(knowing.state_dict())
    assert target.doubt is not None
    assert torch.equal(target.doubt.means, knowing.doubt.means)
    target.load_state_dict(plain.state_dict())
    assert target.doubt is None


def test_distances_are_exact_under_autocast() -> None:
    features = 30 + torch.randn(60, 128, generator=torch.Generator().manual_seed(0))
    state = take_state(features, torch.arange(60) % 3, 3, shrinkage=0.2)
    logits = torch.zeros(60, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = state(features, logits)
    torch.testing.assert_close(found.strangeness, state(features, logits).strangeness)
