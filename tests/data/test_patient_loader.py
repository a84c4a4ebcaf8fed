"""Workers do not die of what their parent is told, and do of what it tells them."""

import multiprocessing
import os
import signal
import subprocess
import time
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from nc_finetune import ImageData
from nc_finetune.data.labelled_images import SkippingLoader
from nc_finetune.data.patient_loader import LeaveSignals, PatientLoader
from nc_finetune.passes.measured_data import _plain_loader
from nc_finetune.selection.features import subset_batches


class Slow(Dataset[int]):
    """Gives the process that reads, after some time."""

    def __init__(self, seconds: float = 0.1) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 12

    def __getitem__(self, item: int) -> int:
        time.sleep(self.seconds)
        return os.getpid()


def tell(pid: int, signum: signal.Signals) -> None:
    """Send a signal from another process than this one, as a terminal does."""
    subprocess.run(["kill", f"-{int(signum)}", str(pid)], check=True)  # noqa: S607


@pytest.mark.parametrize(
    ("method", "signum"),
    [
        ("fork", signal.SIGINT),
        ("forkserver", signal.SIGTERM),
        pytest.param("fork", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("spawn", signal.SIGTERM, marks=pytest.mark.slow),  # each worker imports everything anew
    ],
)
def test_workers_read_on(method: str, signum: signal.Signals) -> None:
    loader = PatientLoader(Slow(), batch_size=2, num_workers=2, multiprocessing_context=method)
    batches = iter(loader)
    read = [next(batches)]
    for pid in {process.pid for process in multiprocessing.active_children()}:
        tell(int(pid or 0), signum)
    read += list(batches)
    assert len(read) == 6
    assert len(set(torch.cat(read).tolist())) == 2


def test_a_parent_ends_workers_that_hang() -> None:
    loader = PatientLoader(Slow(60), num_workers=1)
    batches = iter(loader)
    time.sleep(0.5)
    (worker,) = batches._workers  # type: ignore[attr-defined]
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_what_a_worker_does_besides_is_done(tmp_path: Any) -> None:
    loader = PatientLoader(Slow(0), num_workers=1, worker_init_fn=lambda number: (tmp_path / str(number)).touch())
    list(loader)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


@pytest.mark.parametrize("kind", ["train", "val", "test", "predict", "plain", "subset", "own pass"])
def test_every_loader_of_images_is_of_this_kind(kind: str) -> None:
    data = ImageData("sklearn:digits", image_size=8, num_workers=1)
    made: dict[str, Any] = {
        "plain": lambda: data.eval_dataloader("train"),
        "subset": lambda: subset_batches(data, "train", 30),
        "own pass": lambda: _plain_loader(data.val_dataloader(), range(10)),
    }
    loader = made.get(kind, getattr(data, f"{kind}_dataloader", None))()
    assert isinstance(loader, PatientLoader)
    assert isinstance(loader.worker_init_fn, LeaveSignals)
    assert next(iter(loader))[0].dtype == torch.uint8


def test_a_copy_of_a_loader_is_told_once() -> None:
    loader = SkippingLoader(Slow(0), num_workers=1)
    again = SkippingLoader(Subset(Slow(0), [0]), num_workers=1, worker_init_fn=loader.worker_init_fn)
    assert again.worker_init_fn is loader.worker_init_fn
    assert isinstance(again, DataLoader)
