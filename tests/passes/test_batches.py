from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, DistributedSampler, Subset, TensorDataset

from nc_finetune.passes.batches import ClassCap, check_labels, count_unrepeated, unpack_batch
from nc_finetune.passes.measured_data import PlainPass, dataset_labels


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 7), st.booleans(), st.booleans())
def test_every_sample_counts_once_over_all_ranks(size: int, ranks: int, batch: int, shuffle: bool, drop: bool) -> None:
    counted: list[int] = []
    total = 0
    for rank in range(ranks):
        sampler = DistributedSampler(range(size), ranks, rank, shuffle=shuffle, drop_last=drop)
        loader = DataLoader(range(size), batch_size=batch, sampler=sampler)
        seen = 0
        for values in loader:
            counted += values[: count_unrepeated(loader, seen, len(values))].tolist()
            seen += len(values)
        total += seen
    assert len(counted) == len(set(counted)) == min(size, total)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 7), st.integers(1, 4))
def test_a_pass_of_ones_own_shares_samples_out_without_repetition(size: int, ranks: int, batch: int, cap: int) -> None:
    labels = torch.arange(size) % 3
    loader = DataLoader(TensorDataset(torch.arange(size), labels), batch_size=batch, shuffle=True)
    taken = [
        int(v) for rank in range(ranks) for values, _ in PlainPass(loader, cap, rank, ranks).batches for v in values
    ]
    expected = [index for index in range(size) if index // 3 < cap]
    assert sorted(taken) == expected


def test_a_loader_without_distributed_sampler_repeats_nothing() -> None:
    assert count_unrepeated(DataLoader(range(5)), 4, 3) == 3  # type: ignore[arg-type]


def test_labels_of_datasets_are_read_without_their_samples() -> None:
    class Listed:
        targets = (1, 0, 1)

        def __len__(self) -> int:
            return 3

    tensors = TensorDataset(torch.zeros(2, 4), torch.tensor([2, 0]))
    assert dataset_labels(Subset(ConcatDataset([Listed(), tensors]), [0, 1, 3])) == [1, 0, 2]  # type: ignore[list-item]
    assert dataset_labels([1, 2]) is None
    assert dataset_labels(TensorDataset(torch.zeros(2, 4), torch.tensor([2, 0]), torch.tensor([7, 8]))) == [2, 0]
    assert dataset_labels(TensorDataset(torch.zeros(2, 4), torch.zeros(2, 3))) is None


@pytest.mark.parametrize("labels", [["cat", "dog"], lambda: [0, 1], [[0], [1, 2]]], ids=["names", "method", "ragged"])
def test_attributes_that_are_no_labels_are_passed_by(labels: Any) -> None:
    class Named(TensorDataset):
        pass

    dataset = Named(torch.zeros(2, 4), torch.tensor([2, 0]))
    dataset.labels = labels  # type: ignore[attr-defined]
    assert dataset_labels(dataset) == [2, 0]


class Pairs(torch.utils.data.Sampler[list[int]]):
    """A sampler of batches that has neither a size nor a sampler of samples."""

    def __iter__(self) -> Any:
        return iter([[4, 0], [1, 3], [2]])

    def __len__(self) -> int:
        return 3


def test_batches_of_a_sampler_of_ones_own_keep_their_size() -> None:
    loader = DataLoader(range(5), batch_sampler=Pairs())  # type: ignore[arg-type]
    assert [batch.tolist() for batch in PlainPass(loader, None, 0, 1).batches] == [[0, 1], [2, 3], [4]]


def test_a_sampler_of_batches_stands_for_the_split_it_draws_from() -> None:
    sampler = torch.utils.data.SubsetRandomSampler([1, 3, 4])
    loader = DataLoader(range(5), batch_sampler=torch.utils.data.BatchSampler(sampler, 2, False))  # type: ignore[arg-type]
    assert [batch.tolist() for batch in PlainPass(loader, None, 0, 1).batches] == [[1, 3], [4]]


def test_samples_that_are_batches_stay_as_they_are() -> None:
    loader = DataLoader([torch.zeros(2), torch.ones(3)], batch_size=None)  # type: ignore[arg-type]
    assert [len(batch) for batch in PlainPass(loader, None, 0, 1).batches] == [2, 3]


def test_a_stream_cannot_be_divided_among_ranks() -> None:
    with pytest.raises(ValueError, match="cannot be divided among processes"):
        PlainPass(iter([]), None, 0, 2)


def test_caps_of_ranks_add_up_where_labels_are_not_known_before() -> None:
    caps = [PlainPass(DataLoader([0] * 9), 5, rank, 3).cap.samples_per_class for rank in range(3)]  # type: ignore[arg-type]
    assert sum(cap or 0 for cap in caps) == 5


@pytest.mark.parametrize(
    ("batch", "error", "match"),
    [
        (torch.zeros(2), TypeError, "a batch must be .inputs, labels. or a mapping with both, got Tensor"),
        ([torch.zeros(2)], TypeError, "got list"),
        (
            {"image": 1, "caption": 2},
            ValueError,
            r"unknown key for labels in a batch of 'image, .* Valid: label",
        ),
        ({"label": 1}, ValueError, "unknown key for inputs"),
    ],
)
def test_batches_without_labels_are_refused(batch: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        unpack_batch(batch)


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 1],
        [[0], [1], [1]],
        [False, True, True],
        [0.0, 1.0, 1.0],
        [[0.0], [1.0], [1.0]],
        [[1, 0], [0, 1], [0, 1]],
        [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]],
    ],
)
def test_labels_that_leave_no_doubt_are_taken(labels: Any) -> None:
    found = check_labels(labels)
    assert found.dtype is torch.int64
    assert found.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("labels", "error", "match"),
    [
        ([0.5, 1.0], TypeError, "labels must be integers"),
        ([0.0, 2.0], TypeError, "labels must be integers"),  # it may be a regression
        ([[0.9, 0.1], [0.0, 1.0]], TypeError, "labels must be integers"),
        ([[0, 1], [1, 1]], ValueError, r"labels must have shape \(N,\), got \(2, 2\)"),
        ([[[0, 1], [1, 0]]], ValueError, r"labels must have shape \(N,\), got \(1, 2, 2\)"),
    ],
)
def test_labels_of_other_kinds_are_refused(labels: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        check_labels(labels)


def test_cap_of_none_chooses_all_and_is_never_full() -> None:
    cap = ClassCap(None)
    assert cap.choose([1, 1, 0]) == [0, 1, 2]
    assert not cap.is_full(2)
