"""Grids on a local Ray cluster of two workers."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nc_finetune.results.result import Result
from nc_finetune.run._cell.outcome import failed_result
from nc_finetune.run.cell import Cell, Settings
from nc_finetune.run.grid import BackboneSpec, DatasetSpec, Grid, MethodSpec
from nc_finetune.run.ray_executor import RayExecutor
from nc_finetune.run.ray_tasks import RayTasks
from nc_finetune.run.runner import run_grid

ray = pytest.importorskip("ray", reason="needs the extra ray")
ROOT = Path(__file__).parents[2]


def make_grid(seeds: int = 2, method: str = "LinearProbe") -> Grid:
    return Grid(
        backbones=[BackboneSpec(name="test_resnet", weights=None, key_layer="layer2.0")],
        datasets=[DatasetSpec(source="sklearn:digits", name="digits", image_size=32, val_size=40, test_size=50)],
        methods=[MethodSpec(method=method, learning_rates=[1e-3])],
        samples_per_class=[3],
        seeds=list(range(seeds)),
        settings=Settings(epochs=1),
    )


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    """Two CPUs, one a cell: two workers. Tests use it as an existing cluster, which nobody may shut down."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
        yield
        ray.shutdown()


class DiesOnce:
    """Kill the worker of the first cell, the first time that it runs; note who runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, cell: Cell) -> Result:
        (self.folder / f"{cell.seed}-{os.getpid()}").touch()
        mark = self.folder / "killed"
        if cell.seed == 0 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.5)
        return replace(failed_result(cell, ValueError()), status="ok", error=None, accuracy=50.0 + cell.seed)


def die(cell: Cell) -> Result:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def on_a_cluster(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test: a cluster takes long to start, and each of its workers imports everything anew."""
    return pytest.mark.slow(pytest.mark.usefixtures("_cluster")(test))


@on_a_cluster
def test_the_cell_of_a_killed_worker_runs_again(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    results = run_grid(make_grid(4), tmp_path, executor=RayExecutor(run=DiesOnce(runs)))
    assert [result.accuracy for result in results] == [50.0, 51.0, 52.0, 53.0]
    assert len(list((tmp_path / "results").glob("*.json"))) == 4
    started = [path.name.split("-") for path in runs.glob("*-*")]
    assert sorted(seed for seed, _ in started) == ["0", "0", "1", "2", "3"]
    assert len({process for _, process in started}) >= 3
    assert all(result.provenance["executor"] == "ray" for result in results)


@on_a_cluster
def test_a_cell_that_loses_every_worker_is_recorded_as_failed(tmp_path: Path) -> None:
    (result,) = run_grid(make_grid(1), tmp_path, executor=RayExecutor(run=die, max_lost_workers=1))
    assert result.status == "failed"
    assert "Crash" in (result.error or "")
    assert ray.is_initialized()


@on_a_cluster
def test_ray_gives_the_numbers_of_one_process(tmp_path: Path) -> None:
    grid = make_grid(1)
    (here,) = run_grid(grid, tmp_path / "serial")
    (there,) = run_grid(grid, tmp_path / "ray", executor=RayExecutor())
    assert there.error is None
    assert (there.accuracy, there.nc1) == (here.accuracy, here.nc1)


@pytest.mark.parametrize("options", [{"cpus": 0}, {"gpus": -1}])
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cpus must be above 0"):
        RayExecutor(**options)


def test_a_cluster_that_does_not_answer_is_named_with_what_to_look_at() -> None:
    tasks = RayTasks("head-node:6379")

    def refuse(**_: Any) -> None:
        raise ConnectionError("no answer")

    tasks._ray = SimpleNamespace(is_initialized=lambda: False, init=refuse)
    with (
        pytest.raises(ConnectionError, match=r"no Ray cluster answers at head-node:6379.*RAY_AUTH_MODE"),
        tasks.cluster(),
    ):
        pass
