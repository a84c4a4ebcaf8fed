import itertools

import pytest
import torch
from torch import Tensor

from nc_finetune.functional import multilabel_collapse, tag_means

K = 5


def collapsed(noise: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Samples of one tag at a simplex, those of two and three at scaled sums of it, unbalanced; moved and rotated."""
    generator = torch.Generator().manual_seed(seed)
    sets = [tags for size in (1, 2, 3) for tags in itertools.combinations(range(K), size)]
    rows = [tags for number, tags in enumerate(sets) for _ in range(1 + number % 4 if len(tags) > 1 else 6)]
    labels = torch.zeros(len(rows), K, dtype=torch.long)
    for row, tags in enumerate(rows):
        labels[row, list(tags)] = 1
    scale = torch.tensor([0.0, 1.0, 0.6, 0.4], dtype=torch.float64)[labels.sum(dim=1)]
    simplex = torch.eye(K, 8, dtype=torch.float64) - torch.eye(K, 8, dtype=torch.float64).mean(dim=0)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=generator)).Q
    features = 5 * scale.unsqueeze(1) * (labels.double() @ simplex) @ rotation + 2
    return features + noise * torch.randn(features.shape, dtype=torch.float64, generator=generator), labels


def test_collapsed_configuration_is_zero_in_every_measure() -> None:
    assert [value.item() for value in multilabel_collapse(*collapsed())] == pytest.approx([0, 0, 0], abs=1e-12)


def test_spread_within_sets_of_tags_shows_in_the_variability() -> None:
    features, labels = collapsed(noise=0.3)
    sets, group = torch.unique(labels, dim=0, return_inverse=True)
    means = torch.stack([features[group == number].mean(dim=0) for number in range(len(sets))])
    expected = ((features - means[group]) ** 2).sum(dim=1).mean() / ((means - means.mean(dim=0)) ** 2).sum(dim=1).mean()
    assert multilabel_collapse(features, labels).variability.item() == pytest.approx(expected.item(), rel=1e-10)


def test_several_tags_off_their_average_show_in_the_scaled_average_alone() -> None:
    features, labels = collapsed()
    pair = (labels[:, 0] == 1) & (labels[:, 1] == 1) & (labels.sum(dim=1) == 2)
    wrong = features.clone()
    wrong[pair] = features[labels[:, 2] * (labels.sum(dim=1) == 1) == 1][0]  # where tag 2 alone belongs
    measured = multilabel_collapse(wrong, labels)
    assert measured.scaled_average.item() > 0.01
    assert measured.etf_distance.item() == pytest.approx(0, abs=1e-12)
    assert measured.variability.item() == pytest.approx(0, abs=1e-12)


def test_length_of_the_average_does_not_matter() -> None:
    features, labels = collapsed()
    longer = torch.where((labels.sum(dim=1) == 2).unsqueeze(1), 3 * (features - 2) + 2, features)
    assert multilabel_collapse(longer, labels).scaled_average.item() == pytest.approx(0, abs=1e-12)


def test_set_of_all_tags_has_no_direction_and_is_left_out() -> None:
    features, labels = collapsed()
    everything = torch.ones(2, K, dtype=torch.long)
    middle = torch.full((2, 8), 2.0, dtype=torch.float64)
    measured = multilabel_collapse(torch.cat([features, middle]), torch.cat([labels, everything]))
    assert measured.scaled_average.item() == pytest.approx(0, abs=1e-12)


def test_single_label_data_have_no_scaled_average() -> None:
    features, labels = collapsed()
    alone = labels.sum(dim=1) == 1
    measured = multilabel_collapse(features[alone], labels[alone])
    assert measured.scaled_average.isnan()
    assert measured.etf_distance.item() == pytest.approx(0, abs=1e-12)


def test_tag_means_are_of_samples_with_that_tag_alone() -> None:
    features, labels = collapsed(noise=1.0)
    alone = (labels.sum(dim=1) == 1) & (labels[:, 3] == 1)
    torch.testing.assert_close(tag_means(features, labels)[3], features[alone].mean(dim=0))


@pytest.mark.parametrize(
    ("features", "tags", "message"),
    [
        (torch.ones(2, 3), torch.ones(2), r"tags \(N, K\), got \(2, 3\) and \(2,\)"),
        (torch.ones(2, 3), torch.tensor([[1, 0], [0, 0]]), "at least one tag"),
        (torch.ones(2, 3), torch.tensor([[1, 0], [1, 1]]), "tag 1 has none"),
    ],
)
def test_bad_input_is_named(features: Tensor, tags: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multilabel_collapse(features, tags)
