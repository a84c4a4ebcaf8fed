import numpy as np
import pytest
import torch
from torch import Tensor

from nc_finetune.functional import class_statistics, label_margin
from nc_finetune.functional.label_margin import margin_of

# (N, D): more samples than features, and fewer (the Gram matrix).
SHAPES = [(60, 7), (30, 50)]


def make_samples(number: int, width: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.cat([torch.arange(classes).repeat(2), torch.randint(classes, (number - 2 * classes,))])
    means = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(number, width, generator=generator, dtype=torch.float64)
    return 3 + means[target] + noise, target


def brute_force(features: Tensor, target: Tensor, shrinkage: float) -> Tensor:
    """Squared distances by a covariance that is written out, inverted, and computed without the sample."""
    z, y, found = features.double().numpy(), target.numpy(), []
    for left_out in range(len(z)):
        others = np.arange(len(z)) != left_out
        kept, labels = z[others], y[others]
        means = np.stack([kept[labels == k].mean(0) for k in range(y.max() + 1)])
        deviations = kept - means[labels]
        covariance = deviations.T @ deviations / len(kept)
        width = z.shape[1]
        shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / width * np.eye(width)
        away = z[left_out] - means
        distances = np.einsum("kd,kd->k", away, np.linalg.solve(shrunk, away.T).T)
        found.append(distances[y[left_out]] - np.delete(distances, y[left_out]).min())
    return torch.tensor(found)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shrinkage", [1e-3, 0.3, 1.0])
def test_margin_is_brute_force(shape: tuple[int, int], shrinkage: float) -> None:
    features, target = make_samples(*shape)
    found = label_margin(features, target, shrinkage)
    torch.testing.assert_close(found, brute_force(features, target, shrinkage), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_and_some_samples_give_the_same(shape: tuple[int, int]) -> None:
    features, target = make_samples(*shape)
    some = torch.tensor([7, 3, 22])
    found = label_margin(
        class_statistics(features, target), shrinkage=0.2, samples=(features[some], target[some].to(torch.uint8))
    )
    torch.testing.assert_close(found, label_margin(features, target, 0.2)[some], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_wrong_label_stands_out_in_any_precision(dtype: torch.dtype) -> None:
    features, target = make_samples(60, 7)
    features = features + 9 * torch.eye(4, 7, dtype=torch.float64)[target]
    target[5] = (target[5] + 1) % 4
    margins = label_margin(features.to(dtype), target)
    assert margins.dtype == torch.float64
    assert margins.argmax() == 5
    assert margins[5] > 0


def test_margin_does_not_depend_on_the_order_or_names_of_classes() -> None:
    features, target = make_samples(60, 7)
    order, renamed = torch.randperm(60), torch.tensor([2, 0, 3, 1])
    found = label_margin(features[order], renamed[target][order], 0.1)
    torch.testing.assert_close(found, label_margin(features, target, 0.1)[order], rtol=1e-8, atol=1e-8)


def test_the_only_sample_of_a_class_has_no_margin() -> None:
    features, target = make_samples(60, 7)
    features, target = torch.cat([features, features[:1] + 9]), torch.cat([target, torch.tensor([4])])
    assert label_margin(features, target, 0.5).isnan().nonzero().tolist() == [[60]]


def test_what_has_no_margin_is_an_error() -> None:
    features, target = make_samples(60, 7)
    with pytest.raises(ValueError, match="statistics alone have no margins: give samples"):
        label_margin(class_statistics(features, target), shrinkage=0.5)
    with pytest.raises(ValueError, match="between two classes or more"):
        label_margin(features, torch.zeros(60, dtype=torch.long), 0.5)
    with pytest.raises(ValueError, match=r"labels must be integers in \[0, 3\)"):
        margin_of(torch.zeros(2, 3), torch.tensor([0, 3]))
