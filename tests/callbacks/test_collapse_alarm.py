"""What the monitor warns of, and that ordinary fits give no alarm."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import TrainerFactory
from plain_module import PlainModule, make_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune.callbacks import CollapseMonitor
from nc_finetune.callbacks._collapse.alarm import coinciding, lost_rank, parted

CLASSES = 6


class Script(L.LightningModule):
    """Shows the features of an epoch as they are told, whatever it trains."""

    def __init__(self, train: Sequence[Tensor], val: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.stages = {True: train, False: val or train}
        self.net = nn.Sequential(nn.Identity(), nn.Linear(train[0].shape[1], CLASSES))
        self.num_classes = CLASSES

    def forward(self, rows: Tensor) -> Tensor:
        found = self.stages[bool(rows[0, 1] == 0)]
        logits: Tensor = self.net(found[min(self.current_epoch, len(found) - 1)][rows[:, 0].long()])
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


LABELS = torch.arange(60) % CLASSES


def features(spread: float = 0.3, centres: Tensor | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(CLASSES, 8) if centres is None else centres
    return centres[LABELS] + spread * torch.randn(60, 8, generator=generator)


def loader(split: int) -> DataLoader[tuple[Tensor, ...]]:
    rows = torch.stack([torch.arange(60.0), torch.full((60,), float(split))], dim=1)
    return DataLoader(TensorDataset(rows, LABELS), batch_size=20)


def watch(**options: object) -> CollapseMonitor:
    return CollapseMonitor(layers="penultimate", input_of_classifier="net.1", **options)


def told_of(trainer: L.Trainer, module: L.LightningModule, ckpt_path: str | None = None) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, loader(0), loader(1), ckpt_path=ckpt_path)
    return [str(one.message) for one in caught if str(one.message).startswith("CollapseMonitor, epoch")]


def alarms(make_trainer: TrainerFactory, module: L.LightningModule, **options: object) -> list[str]:
    return told_of(make_trainer(watch(**options), max_epochs=5), module)


def test_lost_directions_are_told_once(make_trainer: TrainerFactory) -> None:
    [told] = alarms(make_trainer, Script([features(), LINE]))
    assert "epoch 1: the class means lie along 1.0 directions by now, and lay along 4." in told


def coinciding_features() -> Tensor:
    centres = torch.eye(CLASSES, 8)
    centres[4] = centres[1]
    same = features(0.3, centres)
    for label in (1, 4):  # closer than chance would put them
        same[label == LABELS] += centres[1] - same[label == LABELS].mean(0)
    return same


def test_means_that_coincide_twice_are_named_once(make_trainer: TrainerFactory) -> None:
    [told] = alarms(make_trainer, Script([features(), coinciding_features()]))
    assert "epoch 2: the means of 1 and 4 lie closer than chance alone would put them" in told


def test_parting_needs_both_splits(make_trainer: TrainerFactory) -> None:
    train = [features(spread) for spread in (0.9, 0.6, 0.4, 0.3, 0.2)]
    val = [features(spread) for spread in (0.9, 0.6, 0.62, 0.9, 1.0)]
    [told] = alarms(make_trainer, Script(train, val), split=["train", "val"])
    assert "epoch 3: since epoch 1 training images have collapsed from a CDNV of" in told
    assert alarms(make_trainer, Script(train, val)) == []
    assert alarms(make_trainer, Script(train, val), split=["train", "val"], alarm=False) == []
    assert alarms(make_trainer, Script(train, train), split=["train", "val"]) == []


LINE = features(0.01, torch.outer(torch.arange(CLASSES, dtype=torch.float), torch.eye(8)[0]))


@pytest.mark.parametrize(
    ("first", "second", "splits"),
    [
        (([features()],), ([LINE],), "train"),
        (([features(), coinciding_features()],), ([coinciding_features(), features()],), "train"),
        (([features(0.9)], [features(0.3)]), ([features(0.3)], [features(0.9)]), ["train", "val"]),
    ],
    ids=["fewer directions from the start", "coinciding once in each", "another validation split"],
)
def test_rows_of_an_earlier_fit_give_no_alarm(
    make_trainer: TrainerFactory, first: tuple[Any, ...], second: tuple[Any, ...], splits: Any
) -> None:
    monitor = watch(split=splits)
    assert told_of(make_trainer(monitor, max_epochs=2), Script(*first)) == []
    assert told_of(make_trainer(monitor, max_epochs=2), Script(*second)) == []
    assert len(monitor.history) == 4


def test_a_fit_that_goes_on_knows_where_its_rows_begin(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    monitor = watch()
    told_of(make_trainer(monitor, max_epochs=2), Script([features()]))
    trainer = make_trainer(monitor, max_epochs=2)
    told_of(trainer, Script([LINE]))
    trainer.save_checkpoint(tmp_path / "second.ckpt")
    again = watch()
    assert told_of(make_trainer(again, max_epochs=4), Script([LINE]), str(tmp_path / "second.ckpt")) == []
    assert len(again.history) == 6


def test_an_ordinary_fit_gives_no_alarm_and_is_measured_as_before(make_trainer: TrainerFactory) -> None:
    monitor = CollapseMonitor(split=["train", "val"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer(monitor, max_epochs=4)
        trainer.fit(PlainModule(), make_loader(60), make_loader(60, seed=1))
    assert not [one for one in caught if "CollapseMonitor" in str(one.message)]
    assert "collapse/effective_rank" in trainer.callback_metrics
    assert not [key for key in trainer.callback_metrics if "pair_overlap" in key]
    pairs = [key for key in monitor.history[0] if key.startswith("pair_overlap/")]
    assert sorted(pairs) == [f"pair_overlap/{pair}/penultimate" for pair in ("0|1", "0|2", "1|2")]


@pytest.mark.parametrize("values", [[], [5.0], [5.0, 2.1], [2.0, 5.0], [float("nan"), 5.0], [5.0, float("nan")]])
def test_no_rank_is_lost_without_a_fall(values: list[float]) -> None:
    assert lost_rank([{"rank": value} for value in values], "rank") is None


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert coinciding([{}, {}]) is None
    assert coinciding([{"a|b": 9.0}, {"a|c": 9.0}]) is None
    assert parted([{"t": float("nan"), "v": 1.0}, {"v": 2.0}], "t", "v") is None
