"""Values that stop training, choose checkpoints and steer schedules, whenever and on however many loaders measured."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TrainerFactory
from crossed import crossed
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from plain_module import PlainModule, make_loader, measure_by_hand

from nc_finetune import LayerwiseNC1
from nc_finetune.callbacks import CollapseMonitor

MEASURED: dict[str, tuple[Callable[..., Any], str]] = {
    "layerwise": (LayerwiseNC1, "nc1/penultimate"),
    "several measures": (lambda **options: LayerwiseNC1(measures=("nc1", "cdnv"), **options), "cdnv/layer4.0"),
    "monitor": (CollapseMonitor, "collapse/nc4"),
    "law": (CollapseMonitor, "collapse/separation_slope"),
}


def epochs_of(callback: Any) -> list[float]:
    return [row["epoch"] for row in callback.history]


@pytest.mark.parametrize(("every", "split", "name"), crossed([2, 3, None], ["train", "val"], MEASURED))
def test_what_is_monitored_is_there_from_the_first_epoch(
    make_trainer: TrainerFactory, tmp_path: Path, name: str, split: str, every: int | None
) -> None:
    build, key = MEASURED[name]
    callback = build(split=split, every_n_epochs=every, strict=True, prefix="p/")
    watchers = [
        EarlyStopping(f"p/{key}", patience=9, check_finite=False),
        ModelCheckpoint(tmp_path, monitor=f"p/{key}"),
    ]
    trainer = make_trainer(*watchers, callback, max_epochs=4, enable_checkpointing=True)
    trainer.fit(PlainModule(), make_loader(), make_loader(16))
    assert epochs_of(callback) == {2: [0, 1, 3], 3: [0, 2, 3], None: [0, 3]}[every]
    assert math.isfinite(watchers[1].best_model_score)


def test_what_nobody_monitors_is_measured_when_it_is_due(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    callback = LayerwiseNC1(every_n_epochs=2)
    other = LayerwiseNC1(every_n_epochs=2, prefix="b/")
    trainer = make_trainer(
        callback, other, ModelCheckpoint(tmp_path, monitor="b/nc1/stem"), max_epochs=4, enable_checkpointing=True
    )
    trainer.fit(PlainModule(), make_loader())
    assert (epochs_of(callback), epochs_of(other)) == ([1, 3], [0, 1, 3])


def test_a_schedule_may_look_at_it(make_trainer: TrainerFactory) -> None:
    class Plateau(PlainModule):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1e9)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "monitor": "nc1/penultimate", "interval": "epoch"},
            }

    callback = LayerwiseNC1(every_n_epochs=3, split="val")
    make_trainer(callback, max_epochs=4).fit(Plateau(), make_loader(), make_loader(16))
    assert epochs_of(callback) == [0, 2, 3]


def test_a_resumed_run_measures_what_is_monitored(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    def run(epochs: int, **options: Any) -> LayerwiseNC1:
        callback = LayerwiseNC1(every_n_epochs=3)
        stop = EarlyStopping("nc1/penultimate", patience=9)
        trainer = make_trainer(stop, callback, max_epochs=epochs)
        trainer.fit(PlainModule(), make_loader(), **options)
        trainer.save_checkpoint(tmp_path / "it.ckpt")
        return callback

    assert epochs_of(run(2)) == [0, 1]
    assert epochs_of(run(5, ckpt_path=tmp_path / "it.ckpt", weights_only=False)) == [0, 1, 2, 4]


@pytest.mark.parametrize(("number", "build"), crossed([2, 3], [LayerwiseNC1, CollapseMonitor]))
def test_each_validation_loader_has_its_values(make_trainer: TrainerFactory, build: Any, number: int) -> None:
    callback, model = build(split=("val", "train"), every_n_epochs=2), PlainModule()
    name = "collapse/nc1" if build is CollapseMonitor else "nc1/penultimate"
    stop = EarlyStopping(f"{name}/dataloader_idx_1", patience=9)
    held_out = [make_loader(16, seed=seed) for seed in range(1, number + 1)]
    make_trainer(stop, callback, max_epochs=2).fit(model, make_loader(), held_out)
    last = callback.history[-1]
    for place, loader in enumerate(held_out):
        expected = measure_by_hand(model, model.net.fc, loader, True)
        assert last[f"{name}/dataloader_idx_{place}" if place else name] == pytest.approx(expected, rel=1e-6)
    assert epochs_of(callback) == [0, 1]
