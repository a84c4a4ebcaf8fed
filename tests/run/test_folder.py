import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nc_finetune.results.result import Result, read_result
from nc_finetune.run import runner
from nc_finetune.run._cell.outcome import planned_result
from nc_finetune.run.cell import Cell
from nc_finetune.run.folder import lock_folder
from nc_finetune.run.grid import BackboneSpec, DatasetSpec, Grid, MethodSpec
from nc_finetune.run.runner import run_grid

FORK = multiprocessing.get_context("fork")
KILLS = 4


def make_grid(seeds: int) -> Grid:
    return Grid(
        backbones=[BackboneSpec(name="test_resnet", weights=None)],
        datasets=[DatasetSpec(source="sklearn:digits", name="digits")],
        methods=[MethodSpec(method="LinearProbe", learning_rates=[1e-3])],
        seeds=list(range(seeds)),
    )


def slow_cell(log: Path, cell: Cell, advance: Any) -> Result:
    """Stand in for a run: note its start, take a while, and give a result that takes a while to write."""
    with log.open("a") as file:
        file.write(f"{cell.run_id}\n")
    time.sleep(0.01)
    return replace(planned_result(cell), accuracy=50.0, class_names=[str(index) for index in range(20_000)])


def work(out: Path, grid: Grid) -> None:
    runner.run_cell = partial(slow_cell, out / "started")
    run_grid(grid, out)


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_grid_that_is_killed_again_and_again_ends_with_exactly_its_cells(tmp_path: Path) -> None:
    grid, chance = make_grid(seeds=60), random.Random(0)  # noqa: S311
    kills, started = 0, tmp_path / "started"
    while kills < KILLS:
        process = FORK.Process(target=work, args=(tmp_path, grid))
        process.start()
        begun = lines_of(started)
        while process.is_alive() and lines_of(started) == begun:
            time.sleep(0.001)
        process.join(chance.uniform(0.0, 0.1))
        if process.exitcode is None:
            os.kill(process.pid or 0, signal.SIGKILL)
            kills += 1
        process.join()
        if (tmp_path / "results").exists() and len(list((tmp_path / "results").glob("*.json"))) == 60:
            break
    finished = {path.stem for path in (tmp_path / "results").glob("*.json")}
    before = lines_of(started)
    work_again = FORK.Process(target=work, args=(tmp_path, grid))
    work_again.start()
    work_again.join()
    assert kills == KILLS
    after = lines_of(started)[len(before) :]
    assert not finished & set(after), "a finished cell was run again"
    assert len(before) + len(after) <= 60 + kills, "more ran twice than were cut short"
    assert {path.name for path in (tmp_path / "results").iterdir()} == {f"{c.run_id}.json" for c in grid.cells()}
    assert all(read_result(path).accuracy == 50.0 for path in (tmp_path / "results").iterdir())


def hold(out: Path, ready: Any) -> None:
    with lock_folder(out):
        ready.set()
        time.sleep(60)


def test_a_second_benchmark_is_kept_out_and_a_killed_one_frees_the_folder(tmp_path: Path) -> None:
    ready = FORK.Event()
    process = FORK.Process(target=hold, args=(tmp_path, ready))
    process.start()
    ready.wait(20)
    with pytest.raises(ValueError, match="another benchmark is running in"), lock_folder(tmp_path, patience=0.1):
        pass
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    with lock_folder(tmp_path, patience=1):
        assert not process.is_alive()
