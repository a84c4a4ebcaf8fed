from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from nc_finetune.data.labelled_images import collate
from nc_finetune.data.training_order import TrainingLoader, TrainingOrder, balancing_weights


def make_loader(number: int = 11, batch_size: int = 3, **options: Any) -> TrainingLoader:
    dataset = TensorDataset(torch.arange(number))
    order = TrainingOrder(dataset, **options)
    return TrainingLoader(
        dataset, sampler=order, batch_size=batch_size, generator=torch.Generator(), collate_fn=lambda batch: batch
    )


def epoch(loader: TrainingLoader, number: int) -> list[list[int]]:
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    return [[int(value) for (value,) in batch] for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return [item for batch in batches for item in batch]


def test_every_image_comes_once() -> None:
    assert sorted(flat(epoch(make_loader(), 0))) == list(range(11))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = [epoch(make_loader(seed=3), number) for number in range(3)]
    torch.rand(100)
    loader = make_loader(seed=3)
    assert [epoch(loader, number) for number in (2, 0, 1)] == [first[2], first[0], first[1]]
    assert len({str(order) for order in first}) == 3


def test_neighbouring_seeds_have_nothing_in_common() -> None:
    # PyTorch's own sampler has the same order for seed 0 in epoch 1 as for seed 1 in epoch 0.
    assert epoch(make_loader(seed=0), 1) != epoch(make_loader(seed=1), 0)


def test_the_first_order_does_not_change_between_versions() -> None:
    assert flat(epoch(make_loader(seed=0), 0)) == [10, 3, 6, 8, 7, 1, 5, 4, 2, 9, 0]


@pytest.mark.parametrize("given", range(4))
def test_an_interrupted_epoch_goes_on(given: int) -> None:
    whole = epoch(make_loader(seed=5), 2)
    loader = make_loader(seed=5)
    loader.sampler.set_epoch(2)  # type: ignore[attr-defined]
    batches = iter(loader)
    for _ in range(given):
        next(batches)
    resumed = make_loader(seed=77)
    resumed.load_state_dict(loader.state_dict())
    assert epoch(resumed, 2) == whole[given:]
    assert epoch(resumed, 3) == epoch(make_loader(seed=5), 3)


def test_a_state_between_epochs_begins_a_new_one() -> None:
    loader = make_loader()
    epoch(loader, 0)
    assert loader.state_dict()["batches"] == 0


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_an_epoch(ranks: int) -> None:
    parts = [flat(epoch(make_loader(ranks=ranks, rank=rank), 1)) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    assert set(flat(parts)) == set(range(11))
    assert sum(map(len, parts)) - 11 < ranks


def test_balanced_classes_come_equally_often() -> None:
    labels = [0] * 900 + [1] * 90 + [2] * 10
    order = TrainingOrder(TensorDataset(torch.arange(1000)), weights=balancing_weights(labels))
    drawn: Counter[int] = Counter()
    for number in range(20):
        order.set_epoch(number)
        drawn.update(labels[item] for item in order)
    assert all(share == pytest.approx(20_000 / 3, rel=0.05) for share in drawn.values())


class Noisy(TensorDataset):
    """Augments what it gives."""

    transform = True

    def __getitems__(self, items: Any) -> list[Tensor]:
        found = []
        for item, seed in items:
            found.append(torch.rand(1, generator=torch.Generator().manual_seed(seed)) + self.tensors[0][item])
        return found


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmentation_does_not_depend_on_the_workers_but_on_the_epoch(num_workers: int) -> None:
    dataset = Noisy(torch.arange(7))
    options: dict[str, Any] = {"batch_size": 2, "num_workers": num_workers, "persistent_workers": num_workers > 0}
    loader = TrainingLoader(
        dataset, sampler=TrainingOrder(dataset), generator=torch.Generator(), collate_fn=collate, **options
    )
    shown = []
    for number in range(2):
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        values = torch.cat(list(loader)).flatten()
        shown.append(values.sort().values % 1)
    assert shown[0].tolist() == pytest.approx(
        [0.719052, 0.739796, 0.215903, 0.785367, 0.744134, 0.173737, 0.240322], abs=1e-6
    )
    assert not torch.allclose(shown[0], shown[1])
