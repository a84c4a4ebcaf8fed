import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nc_finetune.functional import class_statistics, nc1, nc2_equinorm, nc2_etf_distance, nc2_of_distance, nc4
from nc_finetune.heads import FrameHead, OrthogonalFrameHead, SimplexETFHead
from nc_finetune.losses import DotRegressionLoss, RescaledMSELoss

K, D = 4, 6
FRAMES: list[type[FrameHead]] = [SimplexETFHead, OrthogonalFrameHead]


def means(seed: int = 0) -> Tensor:
    return torch.randn(K, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", FRAMES)
def test_frame_is_saved_but_is_no_parameter(kind: type[FrameHead]) -> None:
    head = kind(D, K)
    assert list(head.parameters()) == []
    assert list(head.state_dict()) == ["weight"]
    assert not head.weight.requires_grad


def test_weights_are_frames_with_rows_of_length_alpha() -> None:
    simplex, orthogonal = SimplexETFHead(D, K, alpha=3.0), OrthogonalFrameHead(D, K, alpha=3.0)
    assert nc2_etf_distance(simplex.weight) < 1e-6
    assert nc2_of_distance(orthogonal.weight) < 1e-6
    for head in (simplex, orthogonal):
        torch.testing.assert_close(torch.linalg.vector_norm(head.weight, dim=1), torch.full((K,), 3.0))


@pytest.mark.parametrize("kind", FRAMES)
def test_default_alpha_lets_the_softmax_be_sure_at_the_collapse(kind: type[FrameHead]) -> None:
    head = kind(D, K)
    torch.testing.assert_close(torch.softmax(head(head.weight), dim=1).diagonal(), torch.full((K,), 0.999))
    assert kind(D, K, normalize=False).alpha == 1


@pytest.mark.parametrize("kind", FRAMES)
def test_lengths_of_features_matter_only_without_normalisation(kind: type[FrameHead]) -> None:
    features = means(1)
    torch.testing.assert_close(kind(D, K)(5 * features), kind(D, K)(features))
    free = kind(D, K, normalize=False)
    torch.testing.assert_close(free(5 * features), 5 * free(features))


def test_width_of_one_less_than_the_classes_is_enough_for_a_simplex() -> None:
    assert nc2_etf_distance(SimplexETFHead(K - 1, K).weight) < 1e-6
    with pytest.raises(ValueError, match=r"needs at least 3 dimensions, got 2.*allow_projection=True"):
        SimplexETFHead(K - 2, K)
    with pytest.raises(ValueError, match="4 classes needs as many dimensions, got 3"):
        OrthogonalFrameHead(K - 1, K)


def test_projection_of_a_simplex_still_tells_all_classes_apart() -> None:
    head = SimplexETFHead(4, 10, allow_projection=True)
    assert head(head.weight).argmax(dim=1).tolist() == list(range(10))


@pytest.mark.parametrize("kind", FRAMES)
def test_aligning_brings_the_frame_to_the_class_means(kind: type[FrameHead]) -> None:
    head, goal = kind(D, K), kind(D, K, seed=8)
    head.align_(0.3 * goal.weight)
    torch.testing.assert_close(head.weight, goal.weight)


@pytest.mark.parametrize("kind", FRAMES)
def test_aligned_frame_reloads_without_the_class_means(kind: type[FrameHead]) -> None:
    head, fresh = kind(D, K), kind(D, K, orientation="canonical")
    head.align_(means())
    fresh.load_state_dict(head.state_dict())
    assert torch.equal(fresh.weight, head.weight)


@pytest.mark.parametrize("kind", FRAMES)
def test_a_frame_that_waits_for_class_means_is_aligned_once(kind: type[FrameHead]) -> None:
    head = kind(D, K, orientation="class_means", seed=3)
    assert torch.equal(head.weight, kind(D, K, seed=3).weight)
    assert head.awaits_class_means
    head.align_(means())
    fresh = kind(D, K, orientation="class_means")
    fresh.load_state_dict(head.state_dict())
    found = [frame.awaits_class_means for frame in (head, fresh, kind(D, K))]
    assert found == [False, False, False]


def test_aligning_keeps_dtype_and_copies_in_place() -> None:
    head = SimplexETFHead(D, K).to(torch.bfloat16)
    weight = head.weight
    head.align_(means().requires_grad_())
    assert head.weight is weight
    assert (weight.dtype, weight.requires_grad) == (torch.bfloat16, False)


@pytest.mark.parametrize("kind", FRAMES)
def test_bad_options_are_refused(kind: type[FrameHead]) -> None:
    with pytest.raises(ValueError, match="unknown orientation 'cannonical'; did you mean 'canonical'"):
        kind(D, K, orientation="cannonical")  # type: ignore[arg-type]
    for alpha in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="alpha must be a positive, finite number"):
            kind(D, K, alpha=alpha)
    with pytest.raises(ValueError, match=r"shape of the head's weight, \(K, D\) = \(4, 6\), got \(4, 5\)"):
        kind(D, K).align_(torch.ones(K, D - 1))


def optimise_free_features(head: nn.Module, loss: nn.Module, decay: float = 0.0) -> tuple[Tensor, Tensor]:
    """Unconstrained features: nothing but them is trained, so only head and loss decide where they go."""
    labels = torch.arange(K).repeat_interleave(torch.tensor([9, 5, 3, 2]))  # imbalanced
    start = torch.randn(len(labels), D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = start.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [features], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure() -> Any:
        optimizer.zero_grad()
        value = loss(head(features), labels) + decay * features.square().sum(dim=1).mean()
        value.backward()
        return value

    optimizer.step(closure)
    return features.detach(), labels


@pytest.mark.parametrize(
    ("loss", "alpha"),
    [(nn.CrossEntropyLoss(), None), (DotRegressionLoss(), 1.0), (DotRegressionLoss(alpha=3.0), 3.0)],
)
def test_free_features_collapse_onto_a_fixed_simplex_though_classes_are_imbalanced(
    loss: nn.Module, alpha: float | None
) -> None:
    head = SimplexETFHead(D, K, alpha=alpha).double()
    features, labels = optimise_free_features(head, loss)
    features = nn.functional.normalize(features)
    collapsed = class_statistics(features, labels).means
    assert nc1(features, labels) < 1e-6
    assert nc2_etf_distance(collapsed) < 1e-3
    assert nc2_equinorm(collapsed) < 1e-3
    assert nc4(features, collapsed, head.weight) == 0
    torch.testing.assert_close(collapsed, head.weight / head.alpha, rtol=0, atol=1e-3)


def test_free_features_of_mse_collapse_onto_a_fixed_orthogonal_frame() -> None:
    head = OrthogonalFrameHead(D, K, normalize=False).double()
    features, labels = optimise_free_features(head, RescaledMSELoss(), decay=1e-2)
    assert nc1(features, labels) < 1e-6
    assert nc2_of_distance(class_statistics(features, labels).means) < 1e-3
