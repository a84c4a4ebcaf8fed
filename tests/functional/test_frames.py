"""Frames that are built, and turned towards class means."""

import math

import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from torch import Tensor

from nc_finetune.functional import nc2_etf_distance, nc2_of_distance
from nc_finetune.functional.frames import (
    nearest_orthogonal_frame,
    nearest_simplex_etf,
    orthogonal_frame,
    simplex_etf,
)

SHAPES = [(2, 1), (2, 5), (3, 2), (10, 9), (10, 10), (10, 40)]


def random_means(classes: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(classes, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def simplex_cosines(classes: int) -> Tensor:
    return torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1)


@pytest.mark.parametrize("seed", [None, 0, 7])
@pytest.mark.parametrize(("classes", "dim"), SHAPES)
def test_simplex_has_unit_rows_at_equal_angles(classes: int, dim: int, seed: int | None) -> None:
    frame = simplex_etf(classes, dim, seed=seed)
    torch.testing.assert_close(frame @ frame.T, simplex_cosines(classes), rtol=0, atol=1e-12)


def test_canonical_simplex_is_the_formula_with_the_leading_coordinates() -> None:
    partial = torch.eye(7, 4, dtype=torch.float64)
    expected = math.sqrt(4 / 3) * (torch.eye(4).double() - 1 / 4) @ partial.T
    torch.testing.assert_close(simplex_etf(4, 7), expected)


def test_random_orientation_depends_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    state, first = torch.get_rng_state(), simplex_etf(4, 6, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(simplex_etf(4, 6, seed=1), first)
    assert not torch.allclose(simplex_etf(4, 6, seed=2), first)


def test_random_orientation_favours_no_direction() -> None:
    rows = torch.stack([simplex_etf(3, 2, seed=seed)[0] for seed in range(400)])
    assert rows.mean(dim=0).abs().max() < 0.1  # standard error 0.035; without sign correction it is off by 0.6
    torch.testing.assert_close(rows.T @ rows / 400, torch.eye(2).double() / 2, rtol=0, atol=0.1)


PROJECTED = [(10, 3), (10, 2), (10, 7), (10, 8), (4, 2), (4, 1), (47, 20), (100, 90)]


@pytest.mark.parametrize(("classes", "dim"), [*PROJECTED, (5, 3), (3, 1), (47, 45)])
def test_projection_is_as_near_to_the_simplex_as_its_rank_allows(classes: int, dim: int) -> None:
    frame = simplex_etf(classes, dim, seed=0, allow_projection=True)
    gram, goal = frame @ frame.T * dim / classes, torch.eye(classes).double() - 1 / classes
    # Eckart and Young: K - 1 eigenvalues of 1, of which dim are kept.
    assert torch.linalg.matrix_norm(gram - goal).item() == pytest.approx(math.sqrt(classes - 1 - dim), rel=1e-9)


@pytest.mark.parametrize(("classes", "dim"), PROJECTED)
def test_projection_treats_classes_alike(classes: int, dim: int) -> None:
    lengths = torch.linalg.vector_norm(simplex_etf(classes, dim, seed=3, allow_projection=True), dim=1)
    torch.testing.assert_close(lengths, torch.ones(classes).double(), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("classes", "dim"), [(5, 3), (7, 5), (47, 45)])
def test_where_no_projection_has_equal_lengths_they_differ_little(classes: int, dim: int) -> None:
    lengths = torch.linalg.vector_norm(simplex_etf(classes, dim, seed=3, allow_projection=True), dim=1)
    assert 1e-9 < (lengths - 1).abs().max() < 1 / classes


@pytest.mark.parametrize("dim", [6, 11])
def test_nearest_simplex_equals_scipys_procrustes(dim: int) -> None:
    means = random_means(6, dim) + 3
    canonical = simplex_etf(6, dim)
    rotation, _ = orthogonal_procrustes(canonical.numpy(), (means - means.mean(dim=0)).numpy())
    torch.testing.assert_close(nearest_simplex_etf(means), canonical @ torch.from_numpy(rotation))


@pytest.mark.parametrize(("classes", "dim"), [(6, 5), (6, 3), (6, 9)])
def test_nearest_simplex_recovers_one_that_was_moved_and_scaled(classes: int, dim: int) -> None:
    frame = simplex_etf(classes, dim, seed=4, allow_projection=True)
    found = nearest_simplex_etf(0.01 * frame + 5, allow_projection=True)
    torch.testing.assert_close(found, frame, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dim", [2, 5, 8])
def test_nearest_simplex_is_nearer_than_random_ones(dim: int) -> None:
    means = random_means(6, dim, seed=1)
    found = (nearest_simplex_etf(means, allow_projection=True) * means).sum()
    others = [(simplex_etf(6, dim, seed=seed, allow_projection=True) * means).sum() for seed in range(50)]
    assert found > max(others)


def test_nearest_simplex_to_means_on_a_line_is_a_simplex_still() -> None:
    means = torch.outer(torch.arange(5.0), torch.ones(8))
    assert nc2_etf_distance(nearest_simplex_etf(means)) < 1e-12


@pytest.mark.parametrize("seed", [None, 3])
def test_orthogonal_frame_has_orthonormal_rows(seed: int | None) -> None:
    frame = orthogonal_frame(5, 8, seed=seed)
    torch.testing.assert_close(frame @ frame.T, torch.eye(5).double(), rtol=0, atol=1e-12)


def test_nearest_orthogonal_frame_recovers_one_that_was_scaled() -> None:
    frame = orthogonal_frame(5, 8, seed=2)
    torch.testing.assert_close(nearest_orthogonal_frame(0.3 * frame), frame)
    assert nc2_of_distance(nearest_orthogonal_frame(random_means(5, 8))) < 1e-12


@pytest.mark.parametrize(("classes", "dim"), [(1, 4), (0, 4), (3, 0)])
def test_what_is_no_frame_is_refused(classes: int, dim: int) -> None:
    for build in (simplex_etf, orthogonal_frame):
        with pytest.raises(ValueError, match=rf"at least 2 and dim of at least 1, got {classes} and {dim}"):
            build(classes, dim)


def test_too_few_dimensions_are_refused() -> None:
    match = r"10 classes needs at least 9 dimensions, got 8; widen the features, or set allow_projection=True"
    with pytest.raises(ValueError, match=match):
        simplex_etf(10, 8, seed=0)
    with pytest.raises(ValueError, match=match):
        nearest_simplex_etf(torch.ones(10, 8))
    with pytest.raises(ValueError, match="no canonical orientation: give a seed"):
        simplex_etf(10, 8, allow_projection=True)
    with pytest.raises(ValueError, match="10 classes needs as many dimensions, got 9"):
        orthogonal_frame(10, 9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_means_without_orientation_are_refused(bad: float) -> None:
    for nearest in (nearest_simplex_etf, nearest_orthogonal_frame):
        with pytest.raises(ValueError, match="class means must be finite and not all"):
            nearest(torch.full((3, 4), bad))
