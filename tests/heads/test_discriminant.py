"""A linear head that waits to be solved."""

import pytest
import torch

from nc_finetune.heads import BottleneckHead, DiscriminantHead


def test_a_solution_is_written_into_the_same_parameters() -> None:
    head = DiscriminantHead(3, 2)
    before = list(head.parameters())
    head.take_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64), torch.tensor([7.0, 8.0]))
    assert [id(part) for part in head.parameters()] == [id(part) for part in before]
    assert head(torch.tensor([[1.0, 1.0, 1.0]])).tolist() == [[13.0, 23.0]]
    assert not head.awaits_solution


def test_the_state_says_whether_a_head_has_been_solved() -> None:
    head, fresh = DiscriminantHead(3, 2), DiscriminantHead(3, 2)
    head.take_(torch.ones(2, 3), torch.ones(2))
    fresh.load_state_dict(head.state_dict())
    assert not fresh.awaits_solution
    fresh.reset_parameters()
    assert fresh.awaits_solution


def test_a_solution_of_another_shape_is_refused() -> None:
    head = DiscriminantHead(3, 2)
    with pytest.raises(ValueError, match=r"weight \(2, 3\) and bias \(2,\), got \(2, 4\) and \(2,\)"):
        head.take_(torch.ones(2, 4), torch.ones(2))
    assert head.awaits_solution


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shrinkage must lie in \(0, 1\], got 0.0"):
        DiscriminantHead(3, 2, shrinkage=0.0)
    with pytest.raises(ValueError, match="priors"):
        DiscriminantHead(3, 2, priors="even")  # type: ignore[arg-type]


def test_a_bottleneck_refuses_it() -> None:
    with pytest.raises(ValueError, match="a bottleneck gives those of a random projection"):
        BottleneckHead(6, 4, head=DiscriminantHead)


def test_the_plain_layer_has_its_parameters() -> None:
    head = DiscriminantHead(3, 2)
    plain, features = head.as_linear(), torch.randn(5, 3)
    assert sorted(plain.state_dict()) == ["bias", "weight"]
    assert torch.equal(plain(features), head(features))
