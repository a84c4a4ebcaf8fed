"""What was measured once is kept, in memory and in files, whatever runs afterwards."""

import csv
from pathlib import Path
from typing import Any

import pytest
from conftest import TrainerFactory
from crossed import crossed
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from plain_module import PlainModule, make_loader

from nc_finetune import LayerwiseNC1
from nc_finetune.callbacks import CollapseCallback, CollapseMonitor

KINDS = {"layerwise": LayerwiseNC1, "monitor": CollapseMonitor}
SPLITS = ("train", "val", "test")


def make_callback(kind: str, **options: Any) -> CollapseCallback:
    return KINDS[kind](["penultimate"], split=SPLITS, figure=False, **options)


def rows_of(folder: Path) -> list[dict[str, float]]:
    [file] = [path for path in folder.rglob("*.csv") if path.stem in ("layerwise_nc1", "collapse")]
    with file.open() as text:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(text)]


def loaders() -> tuple[Any, Any]:
    return make_loader(), make_loader(16, seed=1)


def moments(rows: list[dict[str, float]]) -> list[tuple[float, float]]:
    return [(row["epoch"], row["step"]) for row in rows]


@pytest.mark.parametrize(("kind", "stage"), crossed(KINDS, ["test", "validate"]))
def test_a_measured_checkpoint_adds_a_row_of_its_own_moment(
    make_trainer: TrainerFactory, tmp_path: Path, kind: str, stage: str
) -> None:
    callback = make_callback(kind, folder=tmp_path / "out")
    best = ModelCheckpoint(tmp_path, monitor="val/nc1/penultimate" if kind == "layerwise" else "val/collapse/nc1")
    trainer = make_trainer(callback, best, max_epochs=3, enable_checkpointing=True)
    trainer.fit(PlainModule(lr=0.1), *loaders())
    before = [dict(row) for row in callback.history]
    getattr(trainer, stage)(dataloaders=make_loader(16, seed=2), ckpt_path="best", verbose=False, weights_only=False)
    assert callback.history[:3] == before
    [added] = callback.history[3:]
    assert (added["epoch"], added["step"]) in moments(before)
    assert f"epoch={added['epoch']}" in best.best_model_path
    assert rows_of(tmp_path / "out") == callback.history


@pytest.mark.parametrize(("kind", "same_callback"), crossed(KINDS, [True, False]))
def test_a_second_fit_adds_its_rows(
    make_trainer: TrainerFactory, tmp_path: Path, kind: str, same_callback: bool
) -> None:
    callbacks = [make_callback(kind, folder=tmp_path / "out") for _ in range(2)]
    for number, lr in enumerate((0.1, 0.2)):
        callback = callbacks[0 if same_callback else number]
        make_trainer(callback, max_epochs=1 + number).fit(PlainModule(lr=lr), *loaders())
    assert moments(rows_of(tmp_path / "out")) == [(0, 5), (0, 5), (1, 10)]
    assert len(callback.history) == 3 if same_callback else 2


def test_going_on_with_one_trainer_adds_epochs(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    callback, model = make_callback("layerwise"), PlainModule()
    trainer = make_trainer(callback, max_epochs=1, logger=CSVLogger(tmp_path))
    trainer.fit(model, *loaders())
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, *loaders())
    trainer.test(model, make_loader(), verbose=False)
    assert moments(callback.history)[:3] == [(0, 5), (1, 10), (2, 15)]
    assert rows_of(tmp_path) == callback.history


@pytest.mark.parametrize(("kind", "measured_later"), crossed(KINDS, [False, True]))
def test_a_resumed_fit_has_each_row_once(
    make_trainer: TrainerFactory, tmp_path: Path, kind: str, measured_later: bool
) -> None:
    whole = make_callback(kind)
    make_trainer(whole, max_epochs=3).fit(PlainModule(), *loaders())
    folder = tmp_path / "out"
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    first = make_callback(kind, folder=folder)
    epochs = 2 if measured_later else 1  # an epoch that the checkpoint knows nothing of
    make_trainer(first, keep, max_epochs=epochs, enable_checkpointing=True).fit(PlainModule(), *loaders())
    second = make_callback(kind, folder=folder)
    trainer = make_trainer(second, max_epochs=3)
    trainer.fit(PlainModule(), *loaders(), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=False)
    assert second.history == whole.history
    assert rows_of(folder) == whole.history


def test_what_was_measured_after_the_checkpoint_stays_until_it_is_measured_anew(
    make_trainer: TrainerFactory, tmp_path: Path
) -> None:
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    first = make_callback("layerwise", folder=tmp_path / "out")
    make_trainer(first, keep, max_epochs=3, enable_checkpointing=True).fit(PlainModule(), *loaders())
    second = make_callback("layerwise", folder=tmp_path / "out")
    make_trainer(second, max_epochs=2).fit(
        PlainModule(), *loaders(), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=False
    )
    assert len(second.history) == 2
    assert rows_of(tmp_path / "out") == first.history


def test_several_validations_have_a_row_each(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    callback, model = make_callback("layerwise", folder=tmp_path / "out"), PlainModule()
    trainer = make_trainer(callback)
    for seed in range(3):
        trainer.validate(model, make_loader(16, seed=seed), verbose=False)
    assert len({row["val/nc1/penultimate"] for row in callback.history}) == 3
    assert rows_of(tmp_path / "out") == callback.history


def test_several_loggers_and_a_file_of_somebody_else(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    foreign = tmp_path / "out" / "layerwise_nc1.csv"
    foreign.write_text("name,age\nAda,36\n")
    loggers = [TensorBoardLogger(tmp_path / "first"), CSVLogger(tmp_path / "second")]
    callback, apart = make_callback("layerwise"), make_callback("monitor", folder=tmp_path / "out")
    spoiled = make_callback("layerwise", folder=tmp_path / "out", prefix="b/")
    with pytest.warns(UserWarning, match="no table of measurements"):
        make_trainer(spoiled, logger=loggers).fit(PlainModule(), *loaders())
    assert foreign.read_text().startswith("name,age")
    make_trainer(callback, apart, logger=loggers).fit(PlainModule(), *loaders())
    assert rows_of(tmp_path / "first") == callback.history
    assert not list((tmp_path / "second").rglob("layerwise*"))
