from collections.abc import Callable

import numpy as np
import pytest
import torch
from reference import neural_collapse as reference
from torch import Tensor

from nc_finetune.functional import cdnv, class_collapse, class_statistics, closest_pairs, pair_cdnv, pair_overlap

MakeSample = Callable[..., tuple[Tensor, Tensor]]
SHAPES = [(5, 8), (2, 1), (12, 4)]


@pytest.mark.parametrize(("classes", "width"), SHAPES)
def test_spread_and_nearest_class_equal_the_oracle(make_sample: MakeSample, classes: int, width: int) -> None:
    features, target = make_sample(classes, width)
    spread, nearest = reference.class_spread(features.numpy(), target.numpy(), classes)
    found = class_collapse(features, target)
    assert found.spread.tolist() == pytest.approx(spread, rel=1e-9)
    assert found.nearest.tolist() == nearest


@pytest.mark.parametrize(("classes", "width"), SHAPES)
def test_pairs_equal_the_oracle_and_their_mean_is_the_cdnv(make_sample: MakeSample, classes: int, width: int) -> None:
    features, target = make_sample(classes, width)
    found = pair_cdnv(features, target)
    np.testing.assert_allclose(found, reference.pair_cdnv(features.numpy(), target.numpy(), classes), rtol=1e-9)
    assert found.nanmean().item() == pytest.approx(cdnv(features, target).item(), rel=1e-12)


def test_overlaps_equal_the_oracle_and_are_one_where_means_are_the_same(make_sample: MakeSample) -> None:
    features, target = make_sample()
    features, target = torch.cat([features, features[:1]]), torch.cat([target, torch.tensor([6])])
    found = pair_overlap(class_statistics(features, target))
    np.testing.assert_allclose(found, reference.pair_overlap(features.numpy(), target.numpy(), 7), rtol=1e-9)
    same = torch.randn(2000, 400, dtype=torch.float64)
    assert pair_overlap(class_statistics(same, torch.arange(2000) % 2))[0, 1].item() == pytest.approx(1, abs=0.2)


def test_absent_classes_are_nan_and_nobodys_nearest(make_sample: MakeSample) -> None:
    features, target = make_sample(4, 3)
    kept = target != 1
    expected = reference.class_spread(features[kept].numpy(), target[kept].numpy(), 6)
    found = class_collapse(features[kept], target[kept], 6)
    np.testing.assert_allclose(found.spread, expected[0], rtol=1e-9)
    assert found.nearest.tolist() == expected[1]
    assert found.nearest[[1, 4, 5]].tolist() == [-1, -1, -1]
    pairs = pair_cdnv(features[kept], target[kept], 6)
    np.testing.assert_allclose(pairs, reference.pair_cdnv(features[kept].numpy(), target[kept].numpy(), 6), rtol=1e-9)
    assert all({1, 4, 5}.isdisjoint(pair[:2]) for pair in closest_pairs(pairs, 99))
    assert len(closest_pairs(pairs, 99)) == 3


def test_one_class_alone_has_no_nearest() -> None:
    found = class_collapse(torch.randn(4, 3), torch.full((4,), 1), 3)
    assert found.spread.isnan().all()
    assert found.nearest.tolist() == [-1, -1, -1]


def test_one_image_a_class_has_no_spread() -> None:
    assert class_collapse(torch.eye(3), torch.arange(3)).spread.tolist() == [0, 0, 0]


def test_means_that_coincide_are_infinitely_spread() -> None:
    features = torch.tensor([[1.0], [-1.0], [2.0], [-2.0], [9.0]])
    found = class_collapse(features, torch.tensor([0, 0, 1, 1, 2]))
    assert found.spread.tolist() == [torch.inf, torch.inf, 0.0]
    assert closest_pairs(pair_cdnv(features, torch.tensor([0, 0, 1, 1, 2])), 1) == [(0, 1, torch.inf)]


def test_neither_changes_with_shift_scale_or_rotation(make_sample: MakeSample) -> None:
    features, target = make_sample()
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    moved = 7 * features @ rotation + 3
    torch.testing.assert_close(class_collapse(moved, target).spread, class_collapse(features, target).spread)
    torch.testing.assert_close(pair_cdnv(moved, target), pair_cdnv(features, target), equal_nan=True)


def test_the_widest_class_and_the_closest_pair_are_named() -> None:
    centres, noise = 10 * torch.eye(5), torch.randn(50, 5)
    target = torch.arange(50) % 5
    widths = torch.tensor([1.0, 1.0, 1.0, 4.0, 1.0])
    centres[4] = centres[1] + 2
    features = centres[target] + noise * widths[target].unsqueeze(1)
    assert class_collapse(features, target).spread[:4].argmax() == 3
    assert closest_pairs(pair_cdnv(features, target), 1)[0][:2] == (1, 4)


def test_gradient_of_cdnv_is_finite(make_sample: MakeSample) -> None:
    features, target = make_sample()
    features.requires_grad_()
    cdnv(features, target).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert features.grad.any()


def test_bad_labels_are_named() -> None:
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 0 to 2"):
        class_collapse(torch.eye(3), torch.arange(3), 2)
