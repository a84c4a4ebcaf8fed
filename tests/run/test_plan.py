from dataclasses import replace
from pathlib import Path

import pytest

from nc_finetune.results.result import write_result
from nc_finetune.run import plan
from nc_finetune.run._cell.outcome import planned_result
from nc_finetune.run.cell import Settings
from nc_finetune.run.grid import BackboneSpec, DatasetSpec, Grid, MethodSpec
from nc_finetune.run.plan import plan_grid


def make_grid(epochs: int = 15, key_layer: str | None = None) -> Grid:
    return Grid(
        backbones=[BackboneSpec(name="test_resnet", weights=None, key_layer=key_layer)],
        datasets=[DatasetSpec(source="sklearn:digits", name="digits", image_size=32, val_size=40, test_size=50)],
        methods=[MethodSpec(method="LayerFinetuning", learning_rates=[1e-3, 1e-2])],
        samples_per_class=[3],
        seeds=[0, 1],
        settings=Settings(epochs=epochs),
    )


def test_time_grows_with_the_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_step_seconds", lambda cell, data: (0.1, 0.05))  # what a step takes is no matter here
    plan._measured_seconds.cache_clear()
    short, long = (plan_grid(make_grid(epochs), tmp_path).seconds for epochs in (1, 100))
    plan._measured_seconds.cache_clear()
    assert 0 < 5 * short < long


def test_a_finished_run_of_the_same_kind_gives_the_estimate(tmp_path: Path) -> None:
    done, missing = make_grid().cells()
    write_result(replace(planned_result(done), run_seconds=123.0), tmp_path / "results")
    found = plan_grid(make_grid(), tmp_path)
    assert [(item.cell, item.seconds) for item in found.planned] == [(missing, 123.0)]


def test_trials_of_an_automatic_key_layer_are_counted(tmp_path: Path) -> None:
    assert plan_grid(make_grid(key_layer="auto"), tmp_path).seconds > 0


def test_data_that_cannot_be_had_leave_the_estimate_open(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    grid = replace(make_grid(), datasets=[DatasetSpec(source=str(empty), name="empty")])
    planned = plan_grid(grid, tmp_path).planned
    assert [item.seconds for item in planned] == [None, None]
    assert "no folders of images" in (planned[0].reason or "")
