"""Distances against covariances that are written out, and each sample against all the others."""

import pytest
import torch
from torch import Tensor

from nc_finetune.functional import (
    class_gaussians,
    class_statistics,
    left_out_distances,
    mahalanobis,
    merge_class_statistics,
    relative_mahalanobis,
)
from nc_finetune.functional.class_statistics import empty_class_statistics

SHAPES = [(60, 7), (40, 60), (30, 5)]
SHRINKAGES = [1e-3, 0.3, 1.0]


def make_samples(number: int, width: int, absent: bool = True) -> tuple[Tensor, Tensor]:
    """Make samples of four classes, of which the third may have none."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(number) % 3
    labels = labels + (labels > 1).long() * absent
    centres = torch.randn(4, width, generator=generator)
    return torch.randn(number, width, generator=generator) + centres[labels], labels


def shrunk(scatter: Tensor, number: int, s: float) -> Tensor:
    covariance = scatter / number
    eye = torch.eye(len(covariance), dtype=covariance.dtype)
    return (1 - s) * covariance + s * covariance.trace() / len(covariance) * eye


def brute_force(features: Tensor, labels: Tensor, s: float, new: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return squared distances to each class mean, and to the mean of all, by inverses."""
    rows, new = features.double(), new.double()
    means = torch.stack([rows[labels == label].mean(0) for label in range(classes)])  # nan of a class without any
    within, total = rows - means[labels], rows - rows.mean(0)
    inside = shrunk(within.T @ within, len(rows), s).inverse()
    overall = shrunk(total.T @ total, len(rows), s).inverse()
    apart, beyond = new[:, None] - means, new - rows.mean(0)
    found = torch.einsum("nkd,de,nke->nk", apart, inside, apart)
    return found.nan_to_num(torch.inf), torch.einsum("nd,de,ne->n", beyond, overall, beyond)


def left_out_by_force(features: Tensor, labels: Tensor, s: float, classes: int) -> tuple[Tensor, Tensor]:
    found = []
    for place in range(len(labels)):
        others = torch.arange(len(labels)) != place
        found.append(brute_force(features[others], labels[others], s, features[place : place + 1], classes))
    return torch.cat([one for one, _ in found]), torch.cat([one for _, one in found])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("s", SHRINKAGES)
def test_distances_are_those_of_the_covariances(shape: tuple[int, int], s: float) -> None:
    features, labels = make_samples(*shape)
    new = torch.randn(9, shape[1], generator=torch.Generator().manual_seed(1))
    expected, overall = brute_force(features, labels, s, new, 4)
    found = class_gaussians(features, labels, shrinkage=s)
    torch.testing.assert_close(mahalanobis(new, found), expected, rtol=1e-9, atol=1e-9)
    relative = expected.amin(1) - overall
    torch.testing.assert_close(relative_mahalanobis(new, found), relative, rtol=1e-9, atol=1e-9)
    halved = found._replace(**{name: part.float() for name, part in found._asdict().items()})
    torch.testing.assert_close(mahalanobis(new.bfloat16().float(), halved), mahalanobis(new.bfloat16(), halved))
    torch.testing.assert_close(mahalanobis(new, halved), expected.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("s", SHRINKAGES)
def test_leaving_one_out_is_brute_force(shape: tuple[int, int], s: float) -> None:
    features, labels = make_samples(*shape)
    expected, overall = left_out_by_force(features, labels, s, 4)
    found = left_out_distances(features, labels, shrinkage=s)
    torch.testing.assert_close(found.classes, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.overall, overall, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.nearest, expected.amin(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.relative, expected.amin(1) - overall, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("s", [0.3, 1.0])
def test_statistics_of_any_grouping_give_the_same(s: float) -> None:
    features, labels = make_samples(60, 7)
    parts = [class_statistics(features[rows], labels[rows], 4) for rows in (slice(0, 25), slice(25, 60))]
    merged = merge_class_statistics(*parts)
    whole = class_gaussians(features, labels, shrinkage=s)
    torch.testing.assert_close(
        mahalanobis(features, class_gaussians(merged, shrinkage=s)), mahalanobis(features, whole)
    )
    some = features[5:20], labels[5:20]
    found = left_out_distances(merged, shrinkage=s, samples=some)
    expected = left_out_distances(features, labels, shrinkage=s)
    torch.testing.assert_close(found.classes, expected.classes[5:20], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.overall, expected.overall[5:20], rtol=1e-9, atol=1e-9)


def test_a_rank_keeps_the_leading_directions_and_the_trace() -> None:
    features, labels = make_samples(90, 12)
    whole = class_gaussians(features, labels, shrinkage=0.2)
    few = class_gaussians(features, labels, shrinkage=0.2, rank=5)
    assert few.vectors.shape == (12, 5)
    torch.testing.assert_close(few.values, whole.values[:5])
    torch.testing.assert_close(few.rest, whole.values[5:].mean())
    scatter = few.vectors * (few.values - few.rest) @ few.vectors.T + few.rest * torch.eye(12)
    means = features.double() - whole.means[labels]
    torch.testing.assert_close(scatter.trace(), (means.T @ means).trace())
    inverse = shrunk(scatter, 90, 0.2).inverse()
    apart = features[:, None] - whole.means
    expected = torch.einsum("nkd,de,nke->nk", apart, inverse, apart)[:, [0, 1, 3]]
    torch.testing.assert_close(mahalanobis(features, few)[:, [0, 1, 3]], expected)


@pytest.mark.parametrize("shape", [(40, 60), (60, 7)])
def test_a_rank_that_all_fit_in_loses_nothing(shape: tuple[int, int]) -> None:
    features, labels = make_samples(*shape)
    whole, ranked = (class_gaussians(features, labels, shrinkage=0.2, rank=rank) for rank in (None, 256))
    assert torch.equal(mahalanobis(features, whole), mahalanobis(features, ranked))
    assert ranked.rest == 0


def test_distances_do_not_change_with_rotation_shift_and_scale() -> None:
    features, labels = make_samples(40, 60)
    turn = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64))[0]
    moved = 3 * features.double() @ turn + 7
    before, after = (left_out_distances(found, labels, shrinkage=0.2) for found in (features, moved))
    torch.testing.assert_close(before.classes, after.classes)
    torch.testing.assert_close(before.overall, after.overall)


@pytest.mark.parametrize("width", [3, 50])
@pytest.mark.parametrize(
    ("labels", "known"), [([0, 0, 1, 2], []), ([0, 0, 0, 1], [0, 1, 2]), ([0, 0, 1, 1, 3], [0, 1, 2, 3])]
)
def test_without_a_covariance_there_are_no_distances(labels: list[int], known: list[int], width: int) -> None:
    features = torch.randn(len(labels), width, generator=torch.Generator().manual_seed(0))
    found = left_out_distances(features, torch.tensor(labels), shrinkage=0.5)
    assert found.nearest.isfinite().nonzero().flatten().tolist() == known
    assert found.overall.isfinite().nonzero().flatten().tolist() == known
    assert (found.nearest[known] < 1e6).all()


def test_the_only_sample_of_a_class_cannot_be_left_out() -> None:
    features, labels = make_samples(30, 5)
    labels[0] = 2
    found = left_out_distances(features, labels, shrinkage=0.5)
    assert found.classes[0].isnan().all()
    assert found.overall[0].isnan()
    assert found.classes[1:].isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shrinkage": 0.0}, r"shrinkage must lie in \(0, 1\]"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"num_classes": 2}, r"labels must be integers in \[0, 2\)"),
        ({"target": None}, "features need a target"),
        ({"features": torch.full((30, 5), torch.nan)}, "features must be finite"),
        ({"features": torch.zeros(30, 5)}, "there is no within-class covariance"),
        ({"features": empty_class_statistics(4, 9, scatter=False), "target": None}, "have no scatter"),
    ],
)
def test_what_has_no_distances_is_refused(change: dict[str, object], message: str) -> None:
    features, target = make_samples(30, 5)
    given = {"features": features, "target": target, "shrinkage": 0.5, **change}
    with pytest.raises(ValueError, match=message):
        class_gaussians(**given)  # type: ignore[arg-type]


def test_other_features_and_statistics_alone_are_refused() -> None:
    features, labels = make_samples(30, 5)
    found = class_gaussians(features, labels, shrinkage=0.5)
    with pytest.raises(
        ValueError, match=r"features must have shape \(N, 5\), as those that the classes were described"
    ):
        mahalanobis(torch.zeros(3, 4), found)
    with pytest.raises(ValueError, match="statistics alone have no samples to leave out"):
        left_out_distances(class_statistics(features, labels, 4), shrinkage=0.5)
