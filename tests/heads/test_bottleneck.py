import pytest
import torch
from torch import nn

from nc_finetune.heads import BottleneckHead, CosineHead, SimplexETFHead


def test_logits_are_those_of_the_inner_head_on_the_projection() -> None:
    head, features = BottleneckHead(6, 4), torch.randn(3, 6)
    narrow = features @ head.projection.weight.T + head.projection.bias
    torch.testing.assert_close(head(features), narrow @ head.head.weight.T + head.head.bias)


@pytest.mark.parametrize(("width", "expected"), [(None, 4), (3, 3), (9, 9)])
def test_width_is_that_asked_for_or_the_number_of_classes(width: int | None, expected: int) -> None:
    head = BottleneckHead(6, 4, width=width)
    assert isinstance(head.head, nn.Linear)
    assert (head.projection.out_features, head.head.in_features) == (expected, expected)


def test_bottleneck_and_fixed_head_save_what_the_linear_one_has() -> None:
    head = BottleneckHead(2048, 10, bias=False, head=SimplexETFHead)
    assert sum(parameter.numel() for parameter in head.parameters()) == 2048 * 10


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="width of the bottleneck must be at least 1, got 0"):
        BottleneckHead(6, 4, width=0)
    with pytest.raises(ValueError, match="simplex ETF of 4 classes needs at least 3 dimensions, got 2"):
        BottleneckHead(6, 4, width=2, head=SimplexETFHead)


def test_fixed_head_behind_a_bottleneck_learns_a_linear_probe() -> None:
    torch.manual_seed(0)
    labels = torch.arange(4).repeat(10)
    features = 5 + torch.eye(4, 6)[labels] + 0.1 * torch.randn(40, 6)  # far from the origin
    head = BottleneckHead(6, 4, head=SimplexETFHead)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
    assert (head(features).argmax(dim=1) == labels).float().mean() > 0.95


@pytest.mark.parametrize("inner", [nn.Linear, CosineHead, SimplexETFHead])
@pytest.mark.parametrize("bias", [True, False])
def test_decisions_are_those_of_both_layers_as_one(inner: type[nn.Module], bias: bool) -> None:
    head, features = BottleneckHead(6, 4, head=inner, bias=bias), torch.randn(50, 6)
    merged = nn.functional.linear(features, head.weight, head.bias)
    assert merged.argmax(dim=1).tolist() == head(features).argmax(dim=1).tolist()


def test_bottleneck_before_what_is_not_linear_has_no_weight() -> None:
    head = BottleneckHead(6, 4, head=lambda width, classes: nn.Sequential(nn.ReLU(), nn.Linear(width, classes)))
    assert getattr(head, "weight", None) is None
